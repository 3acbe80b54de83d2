// The fixture of what timm's VisionTransformer and transformers' Dinov2 can be configured to.
#pragma once
#include "tests/model_fixtures.h"

namespace bcq::test {

inline const std::string kOptions = "tests/fixtures/vit_options";

// A network of the fixture as a folder that can be changed before it is loaded.
struct Case {
  explicit Case(const std::string& name) {
    const json all = read_json(kOptions + "/cases.json");
    config = all.at(name).at("config");
    if (all.at(name).contains("preprocessor")) preprocessor = all.at(name).at("preprocessor");
    for (const auto& [key, tensor] : read_all(kOptions + "/networks.safetensors"))
      if (key.rfind(name + "/", 0) == 0) tensors[key.substr(name.size() + 1)] = tensor;
    logits = tensors.at("logits");
    tensors.erase("logits");
    batch.pixels = SafeTensors::open(kOptions + "/networks.safetensors").get("pixel_values");
  }
  std::unique_ptr<Model> load() const {
    write_text(folder.file("config.json"), config.dump());
    if (!preprocessor.is_null()) write_text(folder.file("preprocessor_config.json"), preprocessor.dump());
    write_raw(folder.file("model.safetensors"), tensors, false, {});
    return load_model(folder.path);
  }
  std::string refusal() const {
    return message_of<InputError>([this] { load(); });
  }

  Folder folder;
  json config, preprocessor;
  std::map<std::string, Tensor> tensors;
  Tensor logits;
  Batch batch;
};

inline std::vector<std::string> all_cases() {
  std::vector<std::string> names;
  const json cases = read_json(kOptions + "/cases.json");
  for (const auto& [name, of] : cases.items()) names.push_back(name);
  return names;
}

}  // namespace bcq::test

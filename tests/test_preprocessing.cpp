// Preprocessing: every setting of transformers' image processors and of timm's pretrained_cfg is obeyed as the library
// obeys it (tests/reference/make_preprocessing_fixtures.py), or refused by its key.
#include <doctest/doctest.h>

#include <cmath>

#include "data/image/image.h"
#include "engine/file/json.h"
#include "models/timm.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

constexpr int64_t kPixels = 32;  // of the network

// picture() of the script.
Image picture(int height, int width) {
  Image image{height, width, {}};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c)
        image.rgb.push_back(static_cast<uint8_t>((y * 7 + x * 13 + c * 50 + (x * y) % 11 * 9) % 256));
  return image;
}

// FNV-1a of the bytes of the values.
std::string hash(const Tensor& x) {
  uint64_t h = 0xcbf29ce484222325u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(x.data);
  for (int64_t i = 0; i < 4 * x.size(); ++i) h = (h ^ bytes[i]) * 0x100000001b3u;
  return format("%016x", h);
}

ImageConfig read(const json& processor, Notes& notes, const std::string& type = "vit", int64_t side = kPixels) {
  const Folder folder;
  if (!processor.is_null()) write_text(folder.file("preprocessor_config.json"), processor.dump());
  return transformers_preprocessing(folder.path, type, side, notes);
}
std::string refusal(const json& processor, const std::string& type = "vit") {
  Notes notes;
  return message_of<InputError>([&] { read(processor, notes, type); });
}
ImageConfig read_timm(const json& pretrained, Notes& notes) {
  return timm_preprocessing(ConfigReader(pretrained, "config.json", "pretrained_cfg."), kPixels, notes);
}

}  // namespace

TEST_CASE("preprocessing: pixels are those of transformers, bit for bit, in every setting") {
  const json fixture = read_json("tests/fixtures/preprocessing.json");
  int equal = 0;
  for (const json& c : fixture["transformers"]) {
    CAPTURE(c["config"].dump());
    Notes notes;
    const ImageConfig config = read(c["config"], notes, c["model_type"]);
    for (size_t i = 0; i < fixture["sizes"].size(); ++i) {
      CAPTURE(i);
      const json& size = fixture["sizes"][i];
      std::string found;
      try {
        found = hash(preprocess(picture(size[0], size[1]), config));
      } catch (const InputError&) {  // a size that the network does not take
      }
      CHECK(found == c["pixels"][i].get<std::string>());
      equal += found != "";
    }
  }
  CHECK(equal > 180);
}

TEST_CASE("preprocessing: timm's settings are resolved as timm resolves them") {
  const json file = read_json("tests/fixtures/preprocessing.json");
  for (const json& c : file["timm"]) {
    CAPTURE(c["config"].dump());
    const json& want = c["resolved"];
    Notes notes;
    const ImageConfig image = read_timm(c["config"], notes);
    CHECK(image.resize == ImageConfig::Resize::CropPct);
    CHECK(image.height == want["input_size"][1]);
    CHECK(image.crop_pct == want["crop_pct"]);
    CHECK(image.crop_mode == want["crop_mode"]);
    CHECK(image.interpolation == want["interpolation"]);
    for (size_t i = 0; i < 3; ++i) {
      CHECK(image.mean[i] == want["mean"][i].get<float>());
      CHECK(image.std[i] == want["std"][i].get<float>());
    }
    CHECK(contains(notes.at(0), "timm's defaults"));  // no case has all keys
  }
}

TEST_CASE("preprocessing: what cannot be obeyed is refused by file and key") {
  const json square = {{"height", 32}, {"width", 32}};
  const std::pair<const char*, json> settings[] = {{"image_processor_type", "ConvNextImageProcessor"},
                                                   {"image_processor_type", 7},
                                                   {"resample", 1},
                                                   {"resample", 2.5},
                                                   {"size", 0},
                                                   {"size", -32},
                                                   {"size", 4294967328},
                                                   {"size", "large"},
                                                   {"size", json::array()},
                                                   {"size", {32, 32, 32}},
                                                   {"size", {{"longest_edge", 32}}},
                                                   {"size", {{"height", 32}, {"width", 40}}},
                                                   {"size", {{"height", 32}, {"width", 32}, {"depth", 3}}},
                                                   {"do_resize", 1},
                                                   {"do_center_crop", true},
                                                   {"do_pad", true},
                                                   {"rescale_factor", "1/255"},
                                                   {"image_mean", {0.5, 0.5}},
                                                   {"image_std", {0.5, 0, 0.5}},
                                                   {"max_size", 40},
                                                   {"crop_pct", 0.9},
                                                   {"do_flip_channel_order", true},
                                                   {"do_thumbnail", true}};
  for (const auto& [name, value] : settings) {
    const char* key = name;
    CAPTURE(key);
    json processor = {{"size", square}};
    processor[key] = value;
    CHECK_MESSAGE(contains(refusal(processor), std::string(key) == "do_center_crop" ? "crop_size" : key),
                  refusal(processor));
    CHECK(contains(refusal(processor), "preprocessor_config.json"));
  }
  CHECK(contains(refusal(json::array()), "must be a JSON object"));
  CHECK(contains(refusal({{"resample", 2}}), "224 x 224"));       // the size that transformers would take
  CHECK(contains(refusal({{"size", 40}}, "deit"), "224 x 224"));  // its crop_size
  CHECK(contains(refusal({{"size", 40}, {"crop_size", 33}}, "deit"), "crop_size"));
}

TEST_CASE("preprocessing: what timm's settings ask for and is not here is refused by key") {
  const std::pair<const char*, json> settings[] = {
      {"input_size", {3, 32, 40}}, {"input_size", {32, 32}}, {"input_size", {3, 32.0, 32}},
      {"crop_pct", "most"},        {"crop_pct", 0},          {"interpolation", "lanczos"},
      {"crop_mode", "border"},     {"mean", {1, 2, 3, 4}},   {"std", {0.2, -0.2, 0.2}},
      {"test_crop_pct", 3}};
  for (const auto& [name, value] : settings) {
    const char* key = name;
    CAPTURE(key);
    Notes notes;
    const json pretrained = {{key, value}};
    const std::string message = message_of<InputError>([&] { read_timm(pretrained, notes); });
    CHECK_MESSAGE(contains(message, std::string("pretrained_cfg.") + key), message);
  }
  // Test settings of a size this network does not take are left alone, and said so.
  Notes notes;
  const ImageConfig image = read_timm(
      {{"input_size", {3, 32, 32}}, {"test_input_size", {3, 48, 48}}, {"crop_pct", 0.8}, {"test_crop_pct", 1.0}},
      notes);
  CHECK(image.crop_pct == 0.8);
  CHECK(contains(notes.at(0), "test_input_size"));
}

TEST_CASE("preprocessing: without a file, or a key, the defaults of the family are taken and noted") {
  Notes notes;
  const ImageConfig vit = read(nullptr, notes), deit = read(nullptr, notes, "deit", 224),
                    small = read(nullptr, notes, "deit");
  CHECK(notes.size() == 3);
  CHECK(contains(notes[1], "preprocessor_config.json is missing: the defaults of transformers' DeiTImageProcessor"));
  CHECK(vit.resize_to[0] == kPixels);
  CHECK(vit.interpolation == "bilinear");
  CHECK(vit.crop == ImageConfig::Crop::None);
  CHECK(vit.mean[1] == 0.5f);
  CHECK(deit.resize_to[1] == 256);
  CHECK(deit.interpolation == "bicubic");
  CHECK(deit.crop == ImageConfig::Crop::Transformers);
  CHECK(small.resize_to[0] == 37);  // 256 / 224 of 32, rounded
  notes.clear();
  read({{"size", 32}, {"image_mean", 0.5}}, notes);
  REQUIRE(notes.size() == 1);
  CHECK(contains(notes[0], "without resample, image_std"));
  notes.clear();
  read({{"size", 32}, {"image_mean", 0.5}, {"image_std", 0.5}, {"resample", 2}}, notes);
  CHECK(notes.empty());
}

TEST_CASE("preprocessing: a record of it tells any two settings apart") {
  const auto change = [](const std::function<void(ImageConfig&)>& f) {
    ImageConfig config;
    f(config);
    return dump(to_json(config));
  };
  using Config = ImageConfig;
  const std::set<std::string> all = {change([](Config&) {}),
                                     change([](Config& c) { c.height = 32; }),
                                     change([](Config& c) { c.width = 32; }),
                                     change([](Config& c) { c.crop_pct = 0.9; }),
                                     change([](Config& c) { c.crop_mode = "squash"; }),
                                     change([](Config& c) { c.interpolation = "bilinear"; }),
                                     change([](Config& c) { c.rescale = 1; }),
                                     change([](Config& c) { c.mean[2] = 0; }),
                                     change([](Config& c) { c.std[0] = 1; }),
                                     change([](Config& c) { c.crop = Config::Crop::Transformers; }),
                                     change([](Config& c) { c.crop = Config::Crop::None; }),
                                     change([](Config& c) { c.resize = Config::Resize::None; }),
                                     change([](Config& c) { c.resize = Config::Resize::Exact; }),
                                     change([](Config& c) { c.resize = Config::Resize::Shortest; }),
                                     change([](Config& c) {
                                       c.resize = Config::Resize::Shortest;
                                       c.resize_to[1] = 9;
                                     }),
                                     change([](Config& c) { c.resize = Config::Resize::Within; })};
  CHECK(all.size() == 16);
  CHECK(contains(dump(to_json(ImageConfig{})), "\"mean\":[0.485,0.456,0.406]"));
}

// dump_layers MODEL INPUT OUTPUT: what a float forward pass computes on the way, for
// comparison with a reference implementation. Writes embed, block.<i>, site.<name>,
// logits, weight.<layer> of a packed model and, when the input holds grad_logits, grad.<name> for every layer.
// INPUT as for the program forward: pixel_values or input_ids.
#include <cstdio>
#include <map>
#include <string>

#include "engine/core/check.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace {

using namespace bcq;

struct Recorder : Observer {
  void product(const Layer& layer, const Tensor&, const Tensor&, const Tensor& y) override { outputs[layer.name] = y; }
  std::map<std::string, Tensor> outputs;
};

Batch read_batch(const SafeTensors& file) {
  Batch batch;
  if (file.has("pixel_values")) {
    batch.pixels = file.get("pixel_values");
    return batch;
  }
  Shape shape;
  const auto ids = file.get_ints("input_ids", &shape);
  require_input(shape.size() == 2, "%s: input_ids must have shape [B, T]", file.path().c_str());
  batch.ids.assign(ids.begin(), ids.end());
  batch.windows = shape[0];
  batch.length = shape[1];
  return batch;
}

void dump(const std::string& model_path, const std::string& input_path, const std::string& output_path) {
  const auto model = load_model(model_path);
  const SafeTensors input = SafeTensors::open(input_path);
  Recorder recorder;
  Tape tape;
  const bool gradients = input.has("grad_logits");
  const Context ctx{Precision::Float, gradients ? &tape : nullptr, &recorder};

  std::map<std::string, Tensor> out;
  Tensor x = out["embed"] = model->embed(ctx, read_batch(input));
  for (int i = 0; i < model->depth(); ++i) x = out["block." + std::to_string(i)] = model->block(ctx, i, x);
  const Tensor logits = out["logits"] = model->head(ctx, x);
  for (const auto& [name, y] : recorder.outputs) out["site." + name] = y;
  if (model->info().packed)
    for (const Layer* layer : model->all_layers()) out["weight." + layer->name] = layer->weight.values();
  if (gradients) {
    tape.backward(logits, input.get("grad_logits", logits.shape));
    for (const auto& [name, y] : recorder.outputs) out["grad." + name] = tape.grad(y);
  }
  write_safetensors(output_path, out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: dump_layers MODEL INPUT OUTPUT\n");
    return 2;
  }
  try {
    dump(argv[1], argv[2], argv[3]);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "dump_layers: %s\n", e.what());
    return 1;
  }
}

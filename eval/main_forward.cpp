// forward: inputs from one safetensors file through a model, logits into another. With
// it anyone can check the engine against another implementation.
#include <cstdio>

#include "engine/core/check.h"
#include "engine/file/safetensors.h"
#include "eval/bench/bench_models.h"
#include "eval/cli.h"
#include "models/model.h"

namespace {

using namespace bcq;

// pixel_values [B, 3, H, W] or input_ids [B, T], whichever the model takes.
Batch read_batch(const Model& model, const SafeTensors& file) {
  Batch batch;
  if (model.info().family == Family::Vision) {
    batch.pixels = file.get("pixel_values");
    require_input(batch.pixels.rank() == 4 && batch.pixels.dim(0) > 0,
                  "%s: pixel_values must have shape [B, 3, H, W], found %s", file.path(),
                  to_string(batch.pixels.shape));
    return batch;
  }
  Shape shape;
  const std::vector<int64_t> ids = file.get_ints("input_ids", &shape);
  require_input(shape.size() == 2 && numel(shape) > 0, "%s: input_ids must have shape [B, T], found %s", file.path(),
                to_string(shape));
  batch.windows = shape[0];
  batch.length = shape[1];
  for (const int64_t id : ids) {
    require_input(id >= 0 && id < model.info().outputs, "%s: input_ids holds %d, the vocabulary has %d entries",
                  file.path(), id, model.info().outputs);
    batch.ids.push_back(static_cast<int32_t>(id));
  }
  return batch;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Run a model on given inputs and write its logits.", "forward"};
  std::string model_path, input, output, json_path;
  int repeats = 0, bits = 0;
  app.add_option("--model", model_path, "Folder with config.json and weights, or the .safetensors file in it")
      ->required()
      ->type_name("DIR|FILE");
  app.add_option("--input", input, "pixel_values [B,3,H,W] F32, or input_ids [B,T] I64")->required()->type_name("FILE");
  app.add_option("--output", output, "logits F32: [B,classes] or [B,T,V]")->required()->type_name("FILE");
  app.add_option("--integer-bits", bits,
                 "Vision: quantize to N bits, grids by the range of this input, and run in integers")
      ->type_name("N");
  app.add_option("--repeats", repeats, "Time the pass: the median of N more runs")->type_name("N");
  app.add_option("--json", json_path, "Write the time as JSON (-: stdout)")->type_name("FILE");
  add_threads_option(app);
  app.footer(
      "Example:\n  forward --model vit_base_patch16_224 --input pixels.safetensors --output logits.safetensors\n"
      "  forward ... --repeats 5 --json time.json\n"
      "  (Python: safetensors.torch.save_file({\"pixel_values\": x}, \"pixels.safetensors\"))");
  return run_program(app, argc, argv, [&] {
    require_usage(repeats >= 0, "--repeats must not be negative");
    require_usage(json_path.empty() || repeats > 0, "--json records a time: --repeats is required");
    const auto model = load_model(model_path);
    const Batch batch = read_batch(*model, SafeTensors::open(input));
    // A packed model is quantized, and compensated, as loaded.
    Context ctx{model->info().packed ? Precision::Fake : Precision::Float};
    if (bits != 0) {
      require_usage(bits >= 2 && bits <= 8, "--integer-bits must be 2 to 8");
      require_usage(model->info().family == Family::Vision, "--integer-bits is for vision models");
      quantize_by_range(*model, batch, bits, false);
      model->prepare_integer();
      ctx.precision = Precision::Integer;
    }
    Tensor logits;
    const auto pass = [&] { logits = model->forward(ctx, batch); };
    double ms = 0;
    if (repeats > 0)
      ms = 1e3 * median_seconds(repeats, pass);
    else
      pass();
    write_safetensors(output, {{"logits", logits}}, {{"model", model->info().name}, {"bcq", version()}});
    print("%s: logits %s\n", output, to_string(logits.shape));
    if (repeats == 0) return;
    print("%.2f ms, the median of %d\n", ms, repeats);
    json record = {{"model", model->info().name}, {"ms", ms}, {"repeats", repeats}, {"integer_bits", bits}};
    record.update(run_facts());
    write_record(json_path, record);
  });
}

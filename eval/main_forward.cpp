// forward: inputs from one safetensors file through a model, logits into another. With
// it anyone can check the engine against another implementation.
#include <cstdio>

#include "engine/core/check.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "eval/cli.h"
#include "models/model.h"
#include "quant/minmax.h"

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
  CommandLine line(
      "forward", "Run a model on given inputs and write its logits.",
      "Example:\n  forward --model vit_base_patch16_224 --input pixels.safetensors --output logits.safetensors\n"
      "  forward ... --repeats 5 --json time.json\n"
      "  (Python: safetensors.torch.save_file({\"pixel_values\": x}, \"pixels.safetensors\"))");
  std::string model_path, input, output, json_path, runtime = "simulate";
  int64_t repeats = 0, bits = 0;
  line.add_model(model_path);
  line.add({"--input", "FILE", "pixel_values [B,3,H,W] F32, or input_ids [B,T] I64", "Options", true}, input);
  line.add_output({"--output", "FILE", "logits F32: [B,classes] or [B,T,V]", "Options", true}, output);
  line.add({"--integer-bits", "N",
            "Vision: quantize to 2 to 8 bits, grids by the range of this input, and run in integers (0: do not)"},
           bits, 0, 8);
  line.add({"--runtime", "{simulate,integer}",
            "Vision, of a model that was saved quantized: in floats rounded to its grids, or from 8-bit codes"},
           runtime);
  line.add({"--repeats", "N", "Time the pass: the best of N more runs"}, repeats, 0, 1 << 24);
  line.add_output({"--json", "FILE", "Write the time as JSON (-: stdout)"}, json_path);
  return line.run(argc, argv, [&] {
    require_usage(json_path.empty() || repeats > 0, "--json records a time: --repeats is required");
    require_usage(runtime == "simulate" || runtime == "integer", "--runtime %s: not one of {simulate,integer}",
                  runtime);
    const auto model = load_model(model_path);
    const Batch batch = read_batch(*model, SafeTensors::open(input));
    // A packed model is quantized, and compensated, as loaded.
    Context ctx{model->info().packed ? Precision::Fake : Precision::Float};
    if (bits != 0) {
      require_usage(bits >= 2, "--integer-bits must be 2 to 8");
      require_usage(model->info().family == Family::Vision, "--integer-bits is for vision models");
      require_usage(!model->info().packed, "%s is quantized already: --integer-bits would do so again",
                    model->info().name);
      quantize_minmax(*model, batch, static_cast<int>(bits));
      model->prepare_int8();
      ctx.precision = Precision::Integer;
    }
    if (line.has("--runtime")) {
      require_usage(model->info().packed && model->info().family == Family::Vision,
                    "--runtime is for vision models that were saved quantized");
      if (runtime == "integer") {
        model->prepare_int8();
        ctx.precision = Precision::Integer;
      }
    }
    if (ctx.precision == Precision::Float && model->info().family == Family::Vision) model->make_panels();
    Tensor logits;
    const auto pass = [&] { logits = model->forward(ctx, batch); };
    double ms = 0;
    if (repeats > 0)
      ms = 1e3 * best_seconds(static_cast<int>(repeats), pass);
    else
      pass();
    write_safetensors(output, {{"logits", logits}}, {{"model", model->info().name}, {"bcq", version()}});
    print("%s: logits %s\n", output, to_string(logits.shape));
    if (repeats == 0) return;
    print("%.2f ms, the best of %d\n", ms, repeats);
    json record = {{"model", model->info().name},
                   {"ms", ms},
                   {"repeats", repeats},
                   {"integer_bits", bits},
                   {"integer", ctx.precision == Precision::Integer}};
    record.update(run_facts());
    write_record(json_path, record);
  });
}

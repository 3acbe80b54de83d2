// imagenet: top-1 and top-5 of a vision transformer, in float or quantized and compensated.
#include <cstdio>

#include "engine/core/check.h"
#include "eval/bc_search.h"
#include "eval/cli.h"
#include "eval/common.h"
#include "eval/layer_report.h"
#include "eval/vision.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, data, labels, calib, cache, json_path, report_path;
  VisionRun run;
  bool bc_search = false;
  int64_t bc_search_images = 128;
};

void add_options(CLI::App& app, Options& o) {
  VisionRun& r = o.run;
  app.add_option("--model", o.model, "Folder with config.json and weights, or the .safetensors file in it")
      ->required()
      ->type_name("DIR|FILE");
  app.add_option("--data,--datapath", o.data,
                 "Images to evaluate, in one folder per class or all in one; or a tar archive of them, read in place")
      ->required()
      ->type_name("DIR|TAR");
  app.add_option("--labels", o.labels,
                 "Classes of the images, by their names or their class folders': val.txt, JSON, Kaggle's CSV, devkit")
      ->type_name("FILE");
  app.add_option("--cache", o.cache, "Keep decoded images and indices of archives here, for further runs")
      ->type_name("DIR");
  app.add_option("--limit", r.limit, "Evaluate N images spread evenly over all")->type_name("N");
  app.add_option("--batch-size", r.batch_size, "Images at a time; results do not depend on it")
      ->capture_default_str()
      ->type_name("B");
  app.add_option("--json", o.json_path, "Write the result as a JSON record (-: stdout)")->type_name("FILE");
  add_threads_option(app);

  const char* q = "Quantization";
  app.add_option("--method", r.method, "fp32, base-ptq, easyquant or ptq4vit")
      ->check(CLI::IsMember({"fp32", "base-ptq", "easyquant", "ptq4vit"}))
      ->capture_default_str()
      ->group(q);
  app.add_option("--wbits", r.wbits, "Bits of the weights")->capture_default_str()->type_name("K")->group(q);
  app.add_option("--abits", r.abits, "Bits of the activations")->capture_default_str()->type_name("K")->group(q);
  app.add_option("--calib-data", o.calib, "Images to calibrate on: the training folder or ILSVRC2012_img_train.tar")
      ->type_name("DIR|TAR")
      ->group(q);
  add_calibration_options(app, r);

  app.add_option("--runtime", r.runtime,
                 "How the quantized model is evaluated: simulate, in floats rounded to the grids; integer, from 8-bit "
                 "codes with exact sums, what stays float or has more than 8 bits excepted")
      ->check(CLI::IsMember({"simulate", "integer"}))
      ->capture_default_str()
      ->group(q);

  const char* b = "Bias compensation";
  app.add_option("--bc", r.bc, "none, channel (folded into the biases) or position (as the paper's tables)")
      ->check(CLI::IsMember({"none", "channel", "position"}))
      ->capture_default_str()
      ->group(b);
  add_bc_options(app, r);
  app.add_flag(
         "--bc-search", o.bc_search,
         "Try every union of layers (conv, linear, matmul), attention, MLPs, blocks and the output, and use the one "
         "whose predictions are closest to the float network's (least KL divergence) on images of --calib-data "
         "that neither calibrate nor compensate. (The official --gsfb picks by test accuracy)")
      ->excludes("--bc-sites")
      ->group(b);
  app.add_option("--bc-search-images", o.bc_search_images, "At most this many of them")
      ->capture_default_str()
      ->type_name("N")
      ->group(b);
  app.add_option(
         "--layer-report", o.report_path,
         "Write the error of every output before and after compensation (mean squares and dB, on the BC images) and "
         "the intervals of every product; .csv, or else JSON")
      ->type_name("FILE");
  app.footer(
      "Examples:\n"
      "  imagenet --model data/mini/vit --data data/mini/images/val\n"
      "  imagenet --model vit_base_patch16_224.augreg_in21k_ft_in1k --data ILSVRC/val --calib-data ILSVRC/train \\\n"
      "           --method ptq4vit --wbits 4 --abits 4 --bc position --json result.json\n"
      "  imagenet --model data/mini/vit --data data/mini/images/val --calib-data data/mini/images/calib \\\n"
      "           --method ptq4vit --runtime integer\n"
      "  imagenet --model deit_small_patch16_224 --data ILSVRC2012_img_val.tar \\\n"
      "           --labels ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt --cache decoded");
}

void print_ranking(const std::vector<BcRanking>& ranking) {
  print("\n| KL divergence, nats   | logit MSE | values   | compensated (the first is used)\n");
  print("|-----------------------|-----------|----------|--------------------------------\n");
  for (const BcRanking& r : ranking)
    print("| %.6f +/- %.6f | %9.3g | %8d | %s\n", r.kl, r.se, r.logit_mse, r.values,
          r.sites.empty() ? "nothing" : r.sites);
}

void print_runtime(const json& r) {
  print("   integer: %d products from 8-bit codes, their weights %.1f MB", r["integer_products"].get<int>(),
        r["integer_weight_bytes"].get<double>() / (1 << 20));
  const char* before = "; simulated: ";
  for (const json& name : r["simulated_products"]) {
    print("%s%s", before, name.get<std::string>());
    before = ", ";
  }
  print("\n");
}

void run(Options& o) {
  VisionRun& r = o.run;
  require_usage(r.method == "fp32" || !o.calib.empty(), "--method %s needs --calib-data", r.method);
  require_usage(r.method != "fp32" || r.bc == "none", "--bc %s needs a --method that quantizes", r.bc);
  require_usage(r.method != "fp32" || r.runtime == "simulate", "--runtime integer needs a --method that quantizes");
  require_usage(!o.bc_search || r.bc != "none", "--bc-search needs --bc channel or position");
  require_usage(o.report_path.empty() || r.method != "fp32", "--layer-report needs a --method that quantizes");

  Timer timer;
  ProgressLine progress;
  const auto model = load_model(o.model);
  require_usage(model->info().family == Family::Vision, "%s is a language model: use perplexity", model->info().name);
  warn_of_tag(*model, progress.warn());
  const ImageFolder data = list_images(o.data, classes_of(model->info()), o.labels, o.cache, progress.callback());
  if (!data.warning.empty()) progress.warn()(data.warning);
  int64_t bc_parameters = 0;
  PtqCost cost;
  std::vector<BcRanking> ranking;
  if (r.method != "fp32") {
    const ImageFolder calib = list_images(o.calib, 0, "", o.cache, progress.callback());
    cost = quantize_vision(*model, calib, r, progress.callback(), progress.warn());
    if (o.bc_search) {
      ranking = search_compensations(*model, calib, r, o.bc_search_images, progress.callback());
      r.bc_sites = ranking[0].sites;
      if (r.bc_sites.empty()) r.bc = "none";
    }
    const bool report = !o.report_path.empty();
    const std::vector<Batch> seen = report ? bc_batches(*model, calib, r) : std::vector<Batch>{};
    const auto before = output_errors(*model, seen, progress.callback());
    bc_parameters = compensate_vision(*model, calib, r, progress.callback());
    if (report) write_layer_report(o.report_path, before, output_errors(*model, seen, progress.callback()), cost);
  }
  const json runtime = prepare_runtime(*model, r);
  const Timer evaluation;
  const Accuracy accuracy = evaluate_vision(*model, data, r, progress.callback());
  const double evaluation_seconds = evaluation.seconds();
  progress.finish();

  json record = vision_record(*model, r, accuracy, bc_parameters, timer.seconds());
  record.update(run_facts());
  record.update(runtime);
  record["evaluation_seconds"] = evaluation_seconds;
  record["data"] = o.data;
  record["labelled_by"] = data.labelled_by;
  record["warnings"] = progress.warnings();
  if (r.method != "fp32") record["calibration"] = to_json(cost);
  if (o.bc_search) record["bc_search"] = to_json(ranking);
  if (o.json_path != "-") {
    print("%s%s%s  %s", model->info().name, model->info().tag.empty() ? "" : ".", model->info().tag, r.method);
    if (r.method != "fp32") print(" W%dA%d", r.wbits, r.abits);
    if (r.bc != "none") print(" + BC (%s; %s)", r.bc, bc_text(*model, bc_parameters));
    print("\n * Acc@1 %.3f +/- %.3f Acc@5 %.3f  (%d images, %.1f s)\n", accuracy.top1, accuracy.top1_se, accuracy.top5,
          accuracy.hit.size(), timer.seconds());
    if (r.method != "fp32") print("   calibration %s\n", cost_text(cost));
    if (!runtime.empty()) print_runtime(runtime);
    if (o.bc_search) print_ranking(ranking);
  }
  write_record(o.json_path, record);
  for (const std::string& message : accuracy.unreadable) print(stderr, "unreadable: %s\n", message);
  if (!accuracy.unreadable.empty())
    throw Incomplete(format("%d of %d images could not be read and count nowhere", accuracy.unreadable.size(),
                            accuracy.unreadable.size() + accuracy.hit.size()));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Top-1 accuracy of a vision transformer, in float or quantized and compensated.", "imagenet"};
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { run(options); });
}

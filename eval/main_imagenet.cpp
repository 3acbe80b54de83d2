// imagenet: top-1 and top-5 of a vision transformer, in float or quantized and compensated.
#include <cstdio>
#include <optional>

#include "data/image/cache.h"
#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/file/onnx_graph.h"
#include "eval/cli.h"
#include "eval/layer_report.h"
#include "eval/resume.h"
#include "eval/save.h"
#include "eval/vision.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, data, labels, calib, cache, json_path, report_path;
  Recipe recipe = recipe_of(Family::Vision);
  int64_t limit = 0, batch_size = 32, bc_search_images = 128;
  bool bc_search = false, paired = false, resume = false;
  SaveOptions save;

  bool saves() const { return !save.directory.empty(); }
};

void add_options(CommandLine& line, Options& o) {
  line.add_model(o.model);
  line.add({"--data,--datapath", "DIR|TAR",
            "Images to evaluate, in one folder per class or all in one; or a tar archive of them, read in place",
            "Options", true},
           o.data);
  line.add({"--labels", "FILE",
            "Classes of the images, by their names or their class folders': val.txt, JSON, Kaggle's CSV, devkit"},
           o.labels);
  line.add({"--cache", "DIR", "Keep decoded images and indices of archives here, for further runs"}, o.cache);
  line.add({"--limit", "N", "Evaluate N images spread evenly over all; 0: all"}, o.limit, 0, 1e15);
  line.add({"--batch-size", "B", "Images at a time; results do not depend on it"}, o.batch_size, 1, 1 << 16);
  line.add({"--paired", "",
            "Run the float network beside the quantized one: agreement of the first classes, KL divergence and "
            "signal-to-noise ratio of the logits"},
           o.paired);
  line.add_output({"--json", "FILE", "Write the result as a JSON record (-: stdout)"}, o.json_path);
  line.add({"--calib-data", "DIR|TAR", "Images to calibrate on: the training folder or ILSVRC2012_img_train.tar",
            "Quantization"},
           o.calib);
  line.add_recipe(o.recipe);
  const char* b = "Bias compensation";
  line.add({"--bc-search", "",
            "Try every union of layers (conv, linear, matmul), attention, MLPs, blocks and the output, and use the one "
            "whose predictions are closest to the float network's (least KL divergence) on images of --calib-data "
            "that neither calibrate nor compensate. (The official --gsfb picks by test accuracy)",
            b},
           o.bc_search);
  line.add({"--bc-search-images", "N", "At most this many of them", b}, o.bc_search_images, 1, 1 << 24);
  line.add_output({"--layer-report", "FILE",
                   "Write the error of every output before and after compensation (mean squares and dB, on the BC "
                   "images) and the intervals of every product; .csv, or else JSON",
                   b},
                  o.report_path);
  const char* s = "Saving";
  line.add({"--save", "DIR", "Write the quantized model as a folder that --model takes, with the same logits", s},
           o.save.directory);
  line.add(
      {"--format", "{bcq,onnx}",
       "What --save writes: bcq, what --model takes; onnx, DIR/model.onnx for ONNX Runtime, OpenVINO and others, of "
       "a quantized, a saved or (--method fp32) the float model, in a program built by make ONNX=1",
       s},
      o.save.format);
  line.add({"--force", "", "Replace DIR although something else wrote it", s}, o.save.force);
  line.add({"--resume", "", "Go on with the same command's interrupted run, from its DIR.partial", s}, o.resume);
}

void print_ranking(const std::vector<BcRanking>& ranking) {
  print("\n| KL divergence, nats   | logit MSE | values   | compensated (the first is used)\n");
  print("|-----------------------|-----------|----------|--------------------------------\n");
  for (const BcRanking& r : ranking)
    print("| %.6f +/- %.6f | %9.3g | %8d | %s\n", r.paired.kl, r.paired.kl_se, r.paired.logit_mse, r.values,
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

void check_options(const CommandLine& line, const Options& o) {
  const Recipe& r = o.recipe;
  require_usage(!calibrates(r) || !o.calib.empty(), "--method %s needs --calib-data", name_of(r));
  require_usage(o.bc_search || !line.has("--bc-search-images"), "--bc-search-images belongs to --bc-search");
  require_usage(o.saves() || !o.save.force, "--force belongs to --save");
  require_usage(o.saves() || !o.resume, "--resume finds its blocks beside the folder of --save");
  require_usage(!o.bc_search || measures_errors(r), "--bc-search needs --bc channel or position");
  require_usage(!o.bc_search || !line.has("--bc-sites"), "--bc-search excludes --bc-sites");
  require_usage(o.report_path.empty() || calibrates(r), "--layer-report needs a --method that quantizes");
  require_usage(o.save.format == "bcq" || o.save.is_onnx(), "--format %s: not one of {bcq,onnx}", o.save.format);
  require_usage(o.saves() || !line.has("--format"), "--format belongs to --save");
  require_usage(!o.saves() || calibrates(r) || o.save.is_onnx(), "--save writes a quantized model: give a --method");
  if (o.saves()) check_saving_vision(r);
  if (o.save.is_onnx()) require_onnx();
  if (!o.cache.empty()) make_folder(o.cache);
}

void print_result(const Task& task, const Recipe& r, const Accuracy& a, const Outcome& outcome, double seconds) {
  const ModelInfo& info = task.model.info();
  print("%s%s%s  %s", info.name, info.tag.empty() ? "" : ".", info.tag, name_of(r));
  if (quantizes(r)) print(" W%dA%d", r.ptq.wbits, r.ptq.abits);
  if (compensates(r)) print(" + BC (%s; %s)", name_of(r.bc), bc_text(task.model, outcome.fitted));
  print("\n * Acc@1 %.3f +/- %.3f Acc@5 %.3f  (%d images, %.1f s)\n", a.top1, a.top1_se, a.top5, a.hit.size(), seconds);
  if (a.paired)
    print("   agreement %.2f +/- %.2f %%, KL %.5f +/- %.5f, SQNR of logits %.2f dB, against the float network\n",
          a.paired->agreement, a.paired->agreement_se, a.paired->kl, a.paired->kl_se, a.paired->sqnr_db);
  if (calibrates(r)) print("   calibration %s\n", cost_text(outcome.solved.seconds));
  if (const std::string text = certificate_text(outcome.solved); !text.empty()) print("   %s\n", text);
}

// All that decides about the result: runs that differ in any of it do not go on with each other's blocks.
json settings_of(VisionTask& task, const Options& o) {
  uint64_t images = 0;
  std::vector<Batch> batches = task.calibration(o.recipe);
  if (measures_errors(o.recipe))
    batches.insert(batches.end(), task.compensation(o.recipe).begin(), task.compensation(o.recipe).end());
  for (const Batch& batch : batches)
    images = checksum({reinterpret_cast<const char*>(batch.pixels.data), 4 * static_cast<size_t>(batch.pixels.size())},
                      images);
  json settings = to_json(o.recipe);
  settings.update({{"calibration_images", format("%016x", images)},
                   {"model", fingerprint(task.model.info().weights)},
                   {"version", version()},
                   {"blas", run_facts()["blas"]}});
  if (o.bc_search) settings["bc_search_images"] = o.bc_search_images;
  return settings;
}

void run(const CommandLine& line, Options& o) {
  check_options(line, o);
  Recipe& r = o.recipe;
  Timer timer;
  ProgressLine progress;
  const auto model = load_model(o.model);
  require_usage(model->info().family == Family::Vision, "%s is a language model: use perplexity", model->info().name);
  set_stored_vision(*model, r);
  require_used(r, line.given());
  if (!calibrates(r)) warn_of_unread(o.calib, name_of(r), progress.warn());
  require_usage(calibrates(r) || !o.paired,
                "--paired compares a quantized model with the float network: give a "
                "--method that quantizes%s",
                model->info().packed ? ", and the model this one was made from" : "");
  if (o.saves()) check_target(o.save, model->info().weights);
  warn_of_tag(*model, progress.warn());
  for (const std::string& note : model->info().notes) progress.warn()(note);
  VisionTask task(*model, list_images(o.data, classes_of(model->info()), o.labels, o.cache, progress.callback()), {});
  if (!task.data.warning.empty()) progress.warn()(task.data.warning);
  if (calibrates(r)) task.calib = list_images(o.calib, 0, "", o.cache, progress.callback());
  task.limit = o.limit;
  task.batch_size = o.batch_size;
  task.paired = o.paired;
  require_same_files(model->info().weights, hash_of(task.data) + " " + hash_of(task.calib));

  std::optional<BlockFiles> blocks;
  if (o.saves() && calibrates(r)) blocks.emplace(partial_folder(o.save), settings_of(task, o), o.resume);
  PartStore* const store = blocks ? &*blocks : nullptr;
  const Warn warn = blocks ? blocks->keeping(progress.warn()) : progress.warn();
  Outcome outcome = quantize(task, r, progress.callback(), warn, store);
  std::vector<BcRanking> ranking;
  if (o.bc_search) {
    ranking = search_compensations(task, r, o.bc_search_images, progress.callback());
    r.bc_sites = ranking[0].sites;
    if (r.bc_sites.empty()) r.bc = BcForm::None;
  }
  compensate(task, r, outcome, progress.callback(), store, !o.report_path.empty());
  if (!o.report_path.empty() && rank() == 0) write_layer_report(o.report_path, outcome);
  std::optional<Saved> saved;
  wait_for_ranks();
  if (o.saves() && rank() == 0) saved = (o.save.is_onnx() ? save_onnx : save_vision)(*model, o.save, r);
  if (blocks) blocks->remove();
  const json runtime = prepare_runtime(*model, r);
  json record = model_record(*model, r, outcome.fitted);
  const Timer evaluation;
  task.measure(r, 0, record, progress.callback());
  record["evaluation_seconds"] = evaluation.seconds();
  progress.finish();

  const Accuracy& accuracy = task.accuracy;
  record.update(run_facts());
  record.update(runtime);
  record.update({{"seconds", timer.seconds()},
                 {"data", o.data},
                 {"labelled_by", task.data.labelled_by},
                 {"warnings", progress.warnings()}});
  if (calibrates(r)) record["calibration"] = to_json(outcome.solved.seconds);
  if (saved) record["saved"] = to_json(o.save, *saved);
  if (o.bc_search) record["bc_search"] = to_json(ranking);
  if (o.json_path != "-") {
    print_result(task, r, accuracy, outcome, timer.seconds());
    if (!runtime.empty()) print_runtime(runtime);
    if (saved) print("   %s\n", saved_text(o.save, *saved));
    if (o.bc_search) print_ranking(ranking);
  }
  write_record(o.json_path, record);
  for (const std::string& message : accuracy.unreadable)
    if (rank() == 0) print(stderr, "unreadable: %s\n", message);
  if (!accuracy.unreadable.empty())
    throw Incomplete(format("%d of %d images could not be read and count nowhere", accuracy.unreadable.size(),
                            accuracy.unreadable.size() + accuracy.hit.size()));
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line(
      "imagenet", "Top-1 accuracy of a vision transformer, in float or quantized and compensated.",
      "Examples:\n"
      "  imagenet --model data/mini/vit --data data/mini/images/val\n"
      "  imagenet --model vit_base_patch16_224.augreg_in21k_ft_in1k --data ILSVRC/val --calib-data ILSVRC/train \\\n"
      "           --method ptq4vit --wbits 4 --abits 4 --bc position --json result.json\n"
      "  imagenet --model data/mini/vit --data data/mini/images/val --calib-data data/mini/images/calib \\\n"
      "           --method ptq4vit --runtime integer --paired\n"
      "  imagenet --model deit_small_patch16_224 --data ILSVRC2012_img_val.tar \\\n"
      "           --labels ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt --cache decoded\n"
      "  imagenet --model data/mini/vit --data data/mini/images/val --calib-data data/mini/images/calib \\\n"
      "           --method joint --wbits 4 --abits 4 --save vit-4bit\n"
      "  imagenet --model vit-4bit --data data/mini/images/val --runtime integer\n"
      "  imagenet --model vit-4bit --data data/mini/images/val --save vit-4bit-onnx --format onnx\n"
      "  imagenet ... --recipe result.json --bc channel");
  Options options;
  add_options(line, options);
  line.share_work();
  return line.run(argc, argv, [&] { run(line, options); });
}

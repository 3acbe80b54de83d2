// table: the paper's vision table, every cell measured on the checkpoints and images that are there.
//
// A finished cell is a JSON file in --out; a run that was stopped goes on where it was.
#include <cstdio>
#include <filesystem>

#include "data/jpeg.h"
#include "engine/check.h"
#include "eval/cli.h"
#include "eval/vision_table.h"

namespace {

using namespace bcq;
namespace fs = std::filesystem;

struct Options {
  std::string models, imagenet, labels, cache, mini = "data/mini", out = "build/table-vision", json_path;
  VisionRun run;
};

// One column: a checkpoint and what the paper has for it.
struct Column {
  std::string label, path;  // path empty: not there
  int paper = -1;           // index into kPaperColumns
};

// A folder called by the architecture, with or without the tag; the paper's tag wins.
std::string find_model(const std::string& models, const std::string& architecture) {
  std::string found;
  for (const auto& entry : fs::directory_iterator(models)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_directory() || (name != architecture && name.rfind(architecture + ".", 0) != 0)) continue;
    require_input(found.empty(), "%s and %s are both %s: keep the one to measure", found.c_str(), entry.path().c_str(),
                  architecture.c_str());
    found = entry.path().string();
  }
  return found;
}

std::vector<Column> columns(const Options& o) {
  std::vector<Column> all;
  if (!o.models.empty()) {
    require_input(fs::is_directory(o.models), "%s: no such folder", o.models.c_str());
    for (size_t i = 0; i < std::size(kPaperColumns); ++i)
      all.push_back({kPaperColumns[i].label, find_model(o.models, kPaperColumns[i].architecture), static_cast<int>(i)});
    return all;
  }
  for (const char* name : {"vit", "deit", "swin"})
    if (fs::exists(fs::path(o.mini) / name)) all.push_back({name, (fs::path(o.mini) / name).string(), -1});
  return all;
}

// What a cell's number depends on besides the cell; a file of another run is measured again.
json settings(const Options& o, const Column& column) {
  return {{"model_path", fs::absolute(column.path).string()},
          {"data", o.imagenet},
          {"labels", o.labels},
          {"jpeg_decoder", jpeg_decoder()},
          {"limit", o.run.limit},
          {"calib_images", o.run.calib_images},
          {"seed", o.run.seed},
          {"bc_sites", o.run.bc_sites},
          {"bc_images", o.run.bc_images},
          {"bc_seed", o.run.bc_seed}};
}

std::string cell_path(const Options& o, const Column& column, const VisionCell& cell) {
  return (fs::path(o.out) /
          format("%s-%d-%s-%s.json", column.label.c_str(), cell.bits, cell.method.c_str(), cell.bc.c_str()))
      .string();
}

// The record of a cell measured before with the same settings; null otherwise.
json finished(const Options& o, const Column& column, const VisionCell& cell) {
  const std::string path = cell_path(o, column, cell);
  if (column.path.empty() || !fs::exists(path)) return nullptr;
  json record = read_json(path);
  return record.value("settings", json()) == settings(o, column) ? record : json(nullptr);
}

// The folder of a split, or the archive it is published as.
std::string split_of(const std::string& imagenet, const std::string& split) {
  const std::string folder = imagenet + "/" + split, tar = imagenet + "/ILSVRC2012_img_" + split + ".tar";
  return !fs::exists(folder) && fs::exists(tar) ? tar : folder;
}

void measure(const Options& o, const Column& column) {
  const auto wanted = [&](const VisionCell& cell) { return finished(o, column, cell).is_null(); };
  const auto cells = vision_cells();
  if (column.path.empty() || std::none_of(cells.begin(), cells.end(), wanted)) return;
  ProgressLine progress(column.label + ": ");
  const auto model = load_model(column.path);
  const bool mini = o.imagenet.empty();
  const ImageFolder data = list_images(mini ? o.mini + "/images/val" : split_of(o.imagenet, "val"),
                                       model->info().outputs, o.labels, o.cache, progress.callback());
  const ImageFolder calib =
      list_images(mini ? o.mini + "/images/calib" : split_of(o.imagenet, "train"), 0, "", o.cache, progress.callback());
  measure_cells(
      *model, data, calib, o.run, wanted, progress.callback(), progress.warn(),
      [&](const VisionCell& cell, const VisionRun& run, const Accuracy& accuracy, int64_t values, double seconds) {
        progress.finish();
        json record = vision_record(*model, run, accuracy, values, seconds);
        record.update(run_facts());
        record["warnings"] = progress.warnings();
        record["settings"] = settings(o, column);
        write_record(cell_path(o, column, cell), record);
        std::fprintf(stderr, "%s %s %s: %.2f\n", column.label.c_str(), cell.width().c_str(), cell.label().c_str(),
                     accuracy.top1);
      });
}

void print(const Options& o, const std::vector<Column>& all) {
  std::printf(
      "| W/A   | method                   | model   | paper | ours           | difference | BC bytes added |\n");
  std::printf(
      "|-------|--------------------------|---------|-------|----------------|------------|----------------|\n");
  json rows = json::array();
  for (const VisionCell& cell : vision_cells())
    for (const Column& column : all) {
      const json record = finished(o, column, cell);
      const double paper = column.paper < 0 ? 0 : paper_top1(cell, static_cast<size_t>(column.paper));
      json row = {{"width", cell.width()},
                  {"method", cell.label()},
                  {"model", column.label},
                  {"paper", paper > 0 ? json(paper) : json(nullptr)},
                  {"record", record}};
      std::string ours = "not run", difference, bytes;
      if (!record.is_null()) {
        const double top1 = record.at("top1");
        ours = format("%5.2f +/- %.2f", top1, record.at("top1_se").get<double>());
        if (paper > 0) difference = format("%+.2f", top1 - paper);
        if (cell.bc != "none") bytes = record.at("bc_bytes").dump();
        row["difference"] = paper > 0 ? json(top1 - paper) : json(nullptr);
      }
      std::printf("| %-5s | %-24s | %-7s | %5s | %14s | %10s | %14s |\n", cell.width().c_str(), cell.label().c_str(),
                  column.label.c_str(), paper > 0 ? format("%.2f", paper).c_str() : "", ours.c_str(),
                  difference.c_str(), bytes.c_str());
      rows.push_back(row);
    }
  std::printf(
      "\nTop-1 %%; +/- is one standard error over the images. BC (position) is what the paper's scripts fit; its "
      "number of\n"
      "images and seed for the printed row are not stated (here %lld, seed %u).\n",
      static_cast<long long>(o.run.bc_images), o.run.bc_seed);
  if (!o.models.empty())
    std::printf(
        "* 384 x 384. BasePTQ and EasyQuant: cited by the paper from PTQ4ViT. DeiT-B in FP32: the paper prints the "
        "figure\n"
        "of DeiT's own repository; these weights give 81.98 with timm's preprocessing. ViT-B's 4/4 gain is +31.97 in "
        "the\n"
        "table; the +36.89 of the abstract is ViT-B*'s. \"not run\": no such checkpoint in --models.\n");
  write_record(o.json_path, rows);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"The vision table of the paper beside what is measured here.", "table"};
  Options o;
  auto* models =
      app.add_option("--models", o.models,
                     "Folder of timm checkpoints, one folder each, called by architecture or architecture.tag; "
                     "without it the embedded models are measured")
          ->type_name("DIR");
  app.add_option("--imagenet", o.imagenet,
                 "Folder with val/ and train/, or with ILSVRC2012_img_val.tar and ILSVRC2012_img_train.tar")
      ->needs(models)
      ->type_name("DIR");
  app.add_option("--labels", o.labels, "Labels of images that lie in one folder (see imagenet --help)")
      ->needs(models)
      ->type_name("FILE");
  app.add_option("--cache", o.cache, "Keep decoded images and indices of archives here, for the next cell and run")
      ->type_name("DIR");
  app.add_option("--mini", o.mini, "The embedded models")->capture_default_str()->type_name("DIR");
  app.add_option("--out", o.out, "Finished cells; a run that was stopped goes on from them")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--limit", o.run.limit, "Evaluate N images spread evenly over all")->type_name("N");
  app.add_option("--calib-images,--nsamples", o.run.calib_images, "Images to calibrate on")->capture_default_str();
  app.add_option("--seed", o.run.seed, "Seed of their draw")->capture_default_str();
  app.add_option("--bc-images,--n-bc-samples", o.run.bc_images, "Images to compensate on")->capture_default_str();
  app.add_option("--bc-seed", o.run.bc_seed, "Seed of their draw")->capture_default_str();
  app.add_option("--json", o.json_path, "Write the table as JSON (-: stdout)")->type_name("FILE");
  add_threads_option(app);
  app.footer("Examples:\n  table\n  table --models timm --imagenet ILSVRC --limit 5000 --json table.json");
  return run_program(app, argc, argv, [&] {
    require_usage(o.models.empty() == o.imagenet.empty(), "--models and --imagenet belong together");
    fs::create_directories(o.out);
    const std::vector<Column> all = columns(o);
    for (const Column& column : all) measure(o, column);
    print(o, all);
  });
}

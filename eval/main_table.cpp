// table: the paper's tables, every cell measured on the checkpoints and data that are there.
#include "engine/core/check.h"
#include "eval/cli.h"
#include "eval/tables/language_table.h"
#include "eval/tables/vision_table.h"

using namespace bcq;

int main(int argc, char** argv) {
  CLI::App app{
      "The paper's tables beside what is measured here: the vision table, or with a subcommand a language one.",
      "table"};
  VisionTable o;
  std::string json_path;
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
  app.add_option(
         "--out", o.cells,
         "Finished cells; a run that was stopped goes on from them, and measures those of other settings, model "
         "files or program versions again")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--limit", o.run.limit, "Evaluate N images spread evenly over all")->type_name("N");
  app.add_option("--batch-size", o.run.batch_size, "Images at a time; results do not depend on it")
      ->capture_default_str()
      ->type_name("B");
  app.add_option("--json", json_path, "Write the table as JSON (-: stdout)")->type_name("FILE");
  add_threads_option(app);
  add_calibration_options(app, o.run);
  add_bc_options(app, o.run);
  const std::function<bool()> language_table = add_language_tables(app);
  app.footer(
      "Examples:\n  table\n  table --models timm --imagenet ILSVRC --limit 5000 --json table.json\n"
      "  table language --models hub --corpora corpora");
  return run_program(app, argc, argv, [&] {
    if (language_table()) return;
    require_usage(o.models.empty() == o.imagenet.empty(), "--models and --imagenet belong together");
    vision_table(o, json_path);
  });
}

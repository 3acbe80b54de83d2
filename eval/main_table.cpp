// table: the paper's tables, every cell measured on the checkpoints and data that are there.
#include <filesystem>

#include "engine/core/check.h"
#include "engine/core/process.h"
#include "eval/cli.h"
#include "eval/language.h"
#include "eval/tables/table.h"

using namespace bcq;

int main(int argc, char** argv) {
  tune_process(argv);  // begins anew with the whole command line, the first word of which is not the parser's
  TableRun o;
  // The first word is a table or its file; without it, the vision table.
  const bool named = argc > 1 && argv[1][0] != '-';
  if (named) o.name = argv[1];
  const AboutTable about = about_table(o.name);
  const bool vision = about.family == Family::Vision;
  o.out = "build/table-" + std::filesystem::path(o.name).stem().string();
  o.base = recipe_of(about.family);
  CommandLine line(named ? "table " + o.name : "table", about.text + ".",
                   "Examples:\n  table\n  table --only '^4-(ptq4vit|joint)'\n  table --models timm --imagenet ILSVRC "
                   "--limit 5000 --json table.json\n"
                   "  table language --models hub --corpora corpora\n  table groups\n  table compensation --paired "
                   "--limit 500");
  line.add({"--models", "DIR",
            vision ? "Folder of timm checkpoints, one folder each, called by architecture or architecture.tag; without "
                     "it the embedded models are measured"
                   : "Folder with opt-125m, opt-350m, bloom-560m and llama-7b; without it the embedded models"},
           o.models);
  const char* const data = vision ? "--imagenet" : "--corpora";
  line.add({data, "DIR",
            vision ? "Folder with val/ and train/, or with ILSVRC2012_img_val.tar and ILSVRC2012_img_train.tar"
                   : "Folder with wiki.test.raw, ptb.valid.txt and C4's en/*.json.gz, at any depth"},
           o.data);
  if (vision) {
    line.add({"--labels", "FILE", "Labels of images that lie in one folder (see imagenet --help)"}, o.labels);
    line.add({"--cache", "DIR", "Keep decoded images and indices of archives here, for the next cell and run"},
             o.cache);
    line.add({"--paired", "", "Run the float network beside each quantized one, for the column KL"}, o.paired);
    line.add({"--batch-size", "B", "Images at a time; results do not depend on it"}, o.batch_size, 1, 1 << 16);
  }
  line.add({"--mini", "DIR", "The embedded models"}, o.mini);
  line.add({"--out", "DIR",
            "Finished cells; a run that was stopped goes on from them, and measures those of other settings, model "
            "files or program versions again"},
           o.out);
  line.add({"--limit", "N",
            vision ? "Evaluate N images spread evenly over all; 0: all"
                   : "Evaluate the first N windows of each text only; 0: all"},
           o.limit, 0, 1e15);
  line.add({"--only", "REGEX",
            "Rows whose name, as in the files of cells (4-ptq4vit-channel), this is found in, beside the float model"},
           o.only);
  line.add_output({"--json", "FILE", "Write the table as JSON (-: stdout)"}, o.json_path);
  line.add_recipe(o.base, true);
  line.share_work();
  return line.run(named ? argc - 1 : argc, named ? argv + 1 : argv, [&] {
    require_usage(o.models.empty() == o.data.empty(), "--models and %s belong together", data);
    require_usage(!o.models.empty() || o.labels.empty(), "--labels needs --models");
    o.given = line.given();
    if (!vision && o.models.empty() && o.base.seqlen == 0) o.given["seqlen"] = kMiniSeqlen;
    run_table(o);
  });
}

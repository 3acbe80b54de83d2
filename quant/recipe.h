// What is done to a network, whole: every option of quantization and compensation, and the table that describes each
// once. Command lines, --help, the JSON of a recipe and of result records, and what tells runs apart come from it.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/file/json_fwd.h"
#include "models/model.h"
#include "quant/allocation.h"
#include "quant/gptq.h"
#include "quant/joint.h"
#include "quant/method.h"
#include "quant/ptq4vit.h"
#include "quant/weight_methods.h"

namespace bcq {

enum class MethodName {
  Float,
  Rtn,
  Gptq,
  Joint,
  MinMax,
  BasePtq,
  EasyQuant,
  Ptq4Vit,
  ApqLike,
  Repq,
  NoisyQuant,
  NoisyPtq4vit,
  Erq,
  Awq,
  SmoothQuant,
  OsPlus,
  Dfq,
  Billm,
  Stored
};                                                        // Stored: as it was loaded
enum class BcForm { None, Channel, Position, DataFree };  // DataFree: correct_biases() of quant/dfq.h

struct Recipe {
  Family family = Family::Vision;
  MethodName method = MethodName::Float;
  PtqOptions ptq;                                // vision; `seed` below is its seed, too
  GptqOptions weights;                           // language, of which rtn takes the grid
  std::vector<std::string> layer_bits, exclude;  // REGEX=K and REGEX, see allocate_bits()
  bool sequential = false, centred = false;      // as GptqMethodOptions has them
  Target target = Target::Own;                   // the same
  int64_t refine = 0, scale_rounds = 0;
  int64_t abits = 32;  // language: ActivationGrid
  bool fixed = false;
  bool gptq_rounding = false;         // language: what rounds after folding; else to nearest
  int64_t fold_steps = 20;            // AwqOptions::steps
  bool clip = true;                   // awq: clipped_weight()
  bool corrected_bloom = false;       // AwqOptions::official_bloom is its contrary
  double alpha = 0.5;                 // of SmoothQuant
  int64_t billm_inside = 0;           // BillmOptions::inside
  bool billm_hessian = true;          // BillmOptions::hessian
  double error_share = 0.5;           // ApqLike::share
  double coe = 10000;                 // of Erq
  bool qwt = false;                   // vision: quant/qwt.h after all else
  ActGrid act_grid = ActGrid::Table;  // vision, of joint
  int64_t samples = 32, seed = 3;     // images or windows to calibrate on, and the seed of their draw
  int64_t seqlen = 0;                 // tokens of a window; 0: the model's longest, at most 2048
  bool align = false;                 // language: calibration windows begin where documents begin
  std::string separators;             // ids of tokens they begin with, with commas; none: the tokenizer's
  BcForm bc = BcForm::None;
  std::string bc_sites = "conv,linear,matmul";  // of kBcSites in quant/bias_comp.h
  Stream bc_stream = Stream::Float;
  double bc_held_out = 0;  // BcOptions::held_out
  int64_t bc_images = 32, bc_seed = 3, bc_batch = 16;
  bool official_mask = false;  // BcOptions::masked_attention is its contrary
  bool integer = false;        // vision: evaluated from 8-bit codes, not simulated
  int64_t prefill_bits = 24;   // language: Context::window_bits
  bool gptq_format = false;    // language: as GPTQ's checkpoints hold it, whether it is saved or not
};

// A method: its name in options and records, in tables, what it needs, its own defaults and how it is made; a recipe of
// none that quantizes has no `make`. Of methods that fold scales into the float network first, in a walk of their own,
// `fold` makes that walk's and `make` what rounds weights after it. A new one is a file of its own and a row in
// methods.cpp.
using MakeMethod = std::unique_ptr<Method> (*)(const Recipe&, const LayerBits&, const Warn&);
struct MethodRow {
  MethodName method;
  Family family;
  const char *name, *label;
  bool calibrates;  // needs data
  void (*defaults)(Recipe&);
  MakeMethod make;
  MakeMethod fold = nullptr;
};
std::span<const MethodRow> method_rows();
const MethodRow& row_of(const Recipe& recipe);
inline const char* name_of(const Recipe& recipe) { return row_of(recipe).name; }
const char* name_of(BcForm form);  // "channel"
// "PTQ4ViT + BC (channel)"
std::string label_of(const Recipe& recipe);

inline bool quantizes(const Recipe& r) { return r.method != MethodName::Float; }
inline bool folds(const Recipe& r) { return row_of(r).fold != nullptr; }
inline bool solves(const Recipe& r) {
  return r.method == MethodName::Gptq || r.method == MethodName::Joint || (folds(r) && r.gptq_rounding);
}
inline bool is_billm(const Recipe& r) { return r.method == MethodName::Billm; }
// Whether rounding carries errors on through a Hessian.
inline bool carries_errors(const Recipe& r) { return solves(r) || is_billm(r); }
inline bool joins(const Recipe& r) { return r.family == Family::Vision && r.method == MethodName::Joint; }
// Whether the method compensates, too, layer by layer as it quantizes them: those that look at the quantized stream.
bool in_one_walk(const Recipe& recipe);
inline bool compensates(const Recipe& r) { return r.bc != BcForm::None; }
inline bool measures_errors(const Recipe& r) { return compensates(r) && r.bc != BcForm::DataFree; }
inline bool calibrates(const Recipe& r) { return row_of(r).calibrates || measures_errors(r); }
// Where the joint method of vision fits biases itself.
inline constexpr const char* kJointSites = "conv,linear";
std::vector<std::string> split(const std::string& list);  // at commas

// Headings of --help; the first and the last are what makes a quantized model, and do nothing to one that is stored.
inline constexpr const char *kQuantization = "Quantization", *kEvaluation = "Evaluation", *kBc = "Bias compensation";

// Who decides an option in a table of results.
enum class InTable {
  Options,  // a row's "options", or the command line for all rows
  Keys,     // a row's own keys ("bits", "method", ...), or nothing
  Drawn,    // the command line alone: the data drawn by it is shared by rows
};

// One row of the table: an option of one family's recipes.
struct Option {
  std::string key;    // in JSON
  std::string flags;  // "--calib-images,--nsamples"
  std::string help;
  bool (*applies)(const Recipe&);
  const char* group = kQuantization;  // the heading of --help
  InTable in_table = InTable::Options;
  std::string type = {};                  // what follows it: "N", "{float,quantized}"; empty: a flag
  bool is_list = false, is_text = false;  // values are lists of text, or text; else numbers and flags
  const char* implied = nullptr;          // the value when none follows; null: one must
  std::function<std::string(Recipe&, const json&)> set = {};  // returns what is wrong with a value, or ""
  std::function<json(const Recipe&)> get = {};

  std::string flag() const { return flags.substr(0, flags.find(',')); }  // the first
};
const std::vector<Option>& recipe_options(Family family);
// "8", or where methods differ "hessian; base-ptq, easyquant: cosine"
std::string defaults_of(const Option& option, Family family);

// The recipe of a method with its own defaults.
Recipe recipe_of(Family family, const std::string& method = "", BcForm bc = BcForm::None);
// From values by key: those `given` on the command line win over those of `file`, which was read from `path`.
// UsageError naming the option, or InputError naming the file and the key, for what is not known or out of range, and
// UsageError for options that do not go together.
Recipe read_recipe(Family family, const json& file, const std::string& path, const json& given);
// UsageError for options that do not go together.
void check(const Recipe& recipe);
// UsageError for an option `given` on the command line, by key, that the recipe has no use for.
void require_used(const Recipe& recipe, const json& given);
// The recipe a file holds: the object itself, or "recipe" of a result record, or of an array of them that agree.
json recipe_in(const std::string& path);
// All that applies to the method; read_recipe() makes the same recipe of it.
json to_json(const Recipe& recipe);

}  // namespace bcq

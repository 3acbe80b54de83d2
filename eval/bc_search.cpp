#include "eval/bc_search.h"

#include <algorithm>
#include <set>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

// Images of the folder in the order of the BC draw, less those that calibrate or compensate.
std::vector<int64_t> held_out(const ImageFolder& calib, const Recipe& r, int64_t images) {
  const int64_t all = static_cast<int64_t>(calib.items.size());
  const auto calibrating = calibration_indices(all, r.samples, static_cast<uint32_t>(r.seed));
  const auto compensating = calibration_indices(all, r.bc_images, static_cast<uint32_t>(r.bc_seed));
  std::set<int64_t> seen(calibrating.begin(), calibrating.end());
  seen.insert(compensating.begin(), compensating.end());
  std::vector<int64_t> left = calibration_indices(all, all, static_cast<uint32_t>(r.bc_seed));
  std::erase_if(left, [&](int64_t i) { return seen.count(i) > 0; });
  require_usage(!left.empty(), "--bc-search needs images in --calib-data besides the %d that calibrate or compensate",
                seen.size());
  left.resize(std::min(left.size(), static_cast<size_t>(images)));
  return left;
}

bool has_stages(Model& model) {
  for (int i = 0; i < model.depth(); ++i)
    if (model.kind(i) == Part::Kind::Merge) return true;
  return false;
}

}  // namespace

std::vector<BcRanking> search_compensations(VisionTask& task, const Recipe& recipe, int64_t images,
                                            const Progress& progress) {
  Model& model = task.model;
  const Tensor pixels = load_pixels(task.calib, held_out(task.calib, recipe, images), model.info().image);
  const auto logits = [&](Precision precision) {
    Tensor all = Tensor::uninitialized({pixels.dim(0), model.info().outputs});
    const auto begin = [&](int64_t batch) { return std::min(pixels.dim(0), batch * task.batch_size); };
    in_order((pixels.dim(0) + task.batch_size - 1) / task.batch_size,
             [&](int64_t b) { return task.logits(precision, pixels.slice(begin(b), begin(b + 1))); },
             [&](int64_t b, const Tensor& some) {
               std::copy_n(some.data, some.size(), all.slice(begin(b), all.dim(0)).data);
             });
    return all;
  };
  const Tensor exact = logits(Precision::Float);

  const std::string switches[] = {"conv,linear,matmul", "attention", "mlp",
                                  has_stages(model) ? "block,downsample,stage" : "block", "model"};
  constexpr int kChoices = 1 << std::size(switches);
  std::vector<BcRanking> ranking;
  for (int choice = 0; choice < kChoices; ++choice) {
    BcRanking candidate;
    for (size_t i = 0; i < std::size(switches); ++i)
      if (choice >> i & 1) candidate.sites += (candidate.sites.empty() ? "" : ",") + switches[i];
    Recipe r = recipe;
    r.bc_sites = candidate.sites;
    if (choice == 0) r.bc = BcForm::None;
    Outcome outcome;
    compensate(task, r, outcome, [&](const std::string&, double done, double total) {
      progress("searching outputs to compensate", choice + 0.8 * done / total, kChoices);
    });
    candidate.values = outcome.fitted;
    const Tensor quantized = logits(Precision::Fake);
    PairedSums sums;
    for (int64_t b = 0; b < exact.dim(0); ++b)
      sums.add(exact.slice(b, b + 1).data, quantized.slice(b, b + 1).data, exact.dim(1));
    const Paired paired = sums.result();
    candidate.kl = paired.kl;
    candidate.se = paired.kl_se;
    candidate.logit_mse = paired.logit_mse;
    progress("searching outputs to compensate", choice + 1, kChoices);
    ranking.push_back(candidate);
  }
  model.clear_compensation();
  std::stable_sort(ranking.begin(), ranking.end(), [](const BcRanking& a, const BcRanking& b) { return a.kl < b.kl; });
  return ranking;
}

json to_json(const std::vector<BcRanking>& ranking) {
  json rows = json::array();
  for (const BcRanking& r : ranking)
    rows.push_back(
        {{"sites", r.sites}, {"values", r.values}, {"kl", r.kl}, {"kl_se", r.se}, {"logit_mse", r.logit_mse}});
  return rows;
}

}  // namespace bcq

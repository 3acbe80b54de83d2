// Calibrations that are interrupted and go on.
#include <doctest/doctest.h>

#include "tests/calibration.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// Keeps what a part's layers and its output hold, and breaks off when `left` parts are done.
struct Memory : PartStore {
  struct Kept {
    std::vector<Layer> layers;
    std::vector<Bias> biases;
    std::vector<Tensor> added;
    PartRecord record;
  };
  bool has(const std::string& calibration, int i) const override { return kept.count({calibration, i}) != 0; }
  bool load(const std::string& calibration, Model& model, int i, PartRecord& record) override {
    const auto found = kept.find({calibration, i});
    if (found == kept.end()) return false;
    const Kept& from = found->second;
    record = from.record;
    for (size_t k = 0; k < from.layers.size(); ++k) *model.layers(i)[k] = from.layers[k];
    const Point output = model.part(i).output;
    for (size_t k = 0; k < from.biases.size(); ++k) *output.folds_into[k] = from.biases[k];
    for (size_t k = 0; k < from.added.size(); ++k) *output.added[k] = from.added[k];
    return true;
  }
  void done(const std::string& calibration, Model& model, int i, const PartRecord& record) override {
    CHECK(kept.count({calibration, i}) == 0);  // no part is calibrated twice
    Kept& part = kept[{calibration, i}];
    for (const Layer* layer : model.layers(i)) part.layers.push_back(*layer);
    for (const Bias* bias : model.part(i).output.folds_into) part.biases.push_back(*bias);
    for (const Tensor* added : model.part(i).output.added) part.added.push_back(*added);
    part.record = record;
    if (--left == 0) throw Error("interrupted");
  }
  std::map<std::pair<std::string, int>, Kept> kept;
  int left = 1000;
};

// Whether a run that is interrupted after any of its parts and started again ends in the bits of one that is not.
void check_interruptions(const std::function<std::unique_ptr<Model>()>& start,
                         const std::function<int64_t(Model&, PartStore*)>& run, int parts) {
  auto whole = start();
  const int64_t fitted = run(*whole, nullptr);
  const Tensor expected = left_behind(*whole);
  for (int after = 1; after <= parts; ++after) {
    CAPTURE(after);
    Memory memory;
    memory.left = after;
    auto first = start(), second = start();
    CHECK(message_of<Error>([&] { run(*first, &memory); }) == "interrupted");
    CHECK_FALSE((after < parts && same_bits(left_behind(*first), expected)));
    CHECK(run(*second, &memory) == fitted);
    CHECK(static_cast<int>(memory.kept.size()) == parts);
    CHECK(same_bits(left_behind(*second), expected));
  }
}

}  // namespace

TEST_CASE("a calibration interrupted after any block and started again ends in the same bits") {
  const std::vector<Batch> data = windows(4, 16);
  const auto separate = [&](Model& model, PartStore* store) {
    const CalibrationResult solved = quantize_gptq(model, data, {options(3)}, kSilent, kIgnore, store);
    return solved.fitted() + compensate(model, data, bc(BcShape::Channel, true), kSilent, store).fitted();
  };
  const auto together = [&](Model& model, PartStore* store) {
    return quantize_gptq(model, data, joint(), kSilent, kIgnore, store, &kJointBc).fitted();
  };
  const auto start = [] { return load_model(kOpt); };
  check_interruptions(start, separate, 2 * start()->depth());
  check_interruptions(start, together, start()->depth());
}

TEST_CASE("a compensation of a vision model interrupted after any part and started again ends in the same bits") {
  const Threads one(1);  // thousands of passes over a handful of values
  for (const std::string& fixture : {kVit, kDeit, kSwin})
    for (const Stream stream : {Stream::Float, Stream::Quantized})
      for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
        if (fixture == kDeit && shape == BcShape::Channel) continue;  // but for two heads it is a ViT
        CAPTURE(fixture);
        BcOptions o = bc(shape, true, stream);
        o.attention = o.mlp = o.model = true;
        o.downsample = o.stage = fixture == kSwin;
        const std::vector<Batch> data = images(2, 2);
        check_interruptions(
            [&] { return with_activation_grids(fixture); },
            [&](Model& model, PartStore* store) { return compensate(model, data, o, kSilent, store).fitted(); },
            load_model(fixture)->depth() + 2);
      }
}

TEST_CASE("GPTQ and compensation of a vision model interrupted after any part end in the same bits") {
  const Threads one(1);  // thousands of passes over a handful of values
  const std::vector<Batch> data = images(3, 4);
  const BcOptions o = bc(BcShape::Position, true);
  check_interruptions([] { return with_activation_grids(kSwin); },
                      [&](Model& model, PartStore* store) {
                        return quantize_gptq(model, data, joint(), kSilent, kIgnore, store, &o).fitted();
                      },
                      load_model(kSwin)->depth() + 2);
}

TEST_CASE("GPTQ: the error on held-out windows is that of the rounded weights about the mean input of all windows") {
  const auto model = load_model("tests/fixtures/opt_tiny");
  std::vector<Batch> data;
  for (int j = 0; j < 8; ++j) {
    Batch window;
    window.windows = 1;
    window.length = 12;
    for (int t = 0; t < 12; ++t) window.ids.push_back((7 * j + 5 * t + j * t) % 40);
    data.push_back(window);
  }
  struct First : Observer {
    void input(const Layer& layer, const Tensor& x, const Tensor&) override {
      if (inputs.empty() || &layer == of) of = &layer, inputs.push_back(x);
    }
    const Layer* of = nullptr;
    std::vector<Tensor> inputs;
  } first;
  for (const Batch& window : data) model->forward({Precision::Float, nullptr, &first}, window);
  GptqMethodOptions o{options(3, -1)};
  o.sequential = true;
  o.held_out = 0.25;
  Gptq method(o, [](const std::string&) {});
  const CalibrationResult result = calibrate(*model, data, {&method});
  const LayerRecord* record = nullptr;
  for (const PartRecord& part : result.parts)
    for (const LayerRecord& layer : part.layers) {
      CHECK(layer.held_out > 0);
      if (layer.layer == first.of->name) record = &layer;
    }
  REQUIRE(record);
  const Tensor q = first.of->weight_in(Precision::Fake).values(), w = first.of->weight.values();
  const int64_t n = w.dim(1), tokens = 12;
  double sum = 0;
  for (int64_t r = 0; r < w.dim(0); ++r) {
    std::vector<double> errors;  // of all tokens, less what the bias takes away
    double mean = 0;
    for (const Tensor& x : first.inputs)
      for (int64_t t = 0; t < tokens; ++t) {
        double e = 0;
        for (int64_t c = 0; c < n; ++c) e += (static_cast<double>(q[r * n + c]) - w[r * n + c]) * x[t * n + c];
        errors.push_back(e);
        mean += e / static_cast<double>(8 * tokens);
      }
    for (size_t i = 0; i < errors.size(); ++i)
      if (i / 12 % 4 == 1) sum += (errors[i] - mean) * (errors[i] - mean);
  }
  CHECK(record->held_out == doctest::Approx(sum / static_cast<double>(2 * tokens * w.dim(0))).epsilon(1e-4));
}

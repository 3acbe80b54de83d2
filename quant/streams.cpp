#include "quant/streams.h"

#include "engine/core/check.h"

namespace bcq {
namespace {

// Batches as one.
Batch join(const std::vector<Batch>& batches) {
  Batch all;
  Tensors pixels;
  for (const Batch& batch : batches) {
    if (!batch.pixels.empty()) {
      pixels.push_back(batch.pixels);
      continue;
    }
    require(all.ids.empty() || batch.length == all.length, "calibration windows of %d and of %d tokens", all.length,
            batch.length);
    all.length = batch.length;
    all.windows += batch.windows;
    all.ids.insert(all.ids.end(), batch.ids.begin(), batch.ids.end());
  }
  if (!pixels.empty()) all.pixels = concatenate(pixels);
  return all;
}

}  // namespace

Streams::Streams(Model& model, const std::vector<Batch>& data, int window_bits, bool whole, CalibrationSeconds& seconds)
    : seconds(seconds),
      model_(model),
      data_(data),
      window_bits_(window_bits),
      whole_(whole),
      real_(data.size()),
      quantized_(data.size()),
      outputs_(data.size()),
      late_real_(data.size()),
      late_quantized_(data.size()) {
  for (const Batch& batch : data) first_sample_.push_back(first_sample_.back() + batch.size());
}

Context Streams::context(Precision precision, Observer* observer) const {
  Context ctx{precision, nullptr, observer};
  ctx.window_bits = window_bits_;
  return ctx;
}

Tensor Streams::run(Precision precision, int i, size_t j, const Tensor& x, PartPass* pass) const {
  const bool is_float = precision == Precision::Float;
  const Tensor &stream = (is_float ? real_ : quantized_)[j], &late = (is_float ? late_real_ : late_quantized_)[j];
  PartPass alone;
  if (late_ && !late.empty() && x.data == stream.data) {
    if (!pass) pass = &alone;
    pass->begin_with(*late_, late);
  }
  return model_.run(context(precision, pass), i, data_[j], x);
}

void Streams::forget_late_start() {
  late_ = nullptr;
  std::fill(late_real_.begin(), late_real_.end(), Tensor{});
  std::fill(late_quantized_.begin(), late_quantized_.end(), Tensor{});
}

void Streams::start_late(const Layer& layer, size_t j, const Tensor& real, const Tensor& quantized) {
  late_ = &layer;
  late_real_[j] = real;
  late_quantized_[j] = quantized;
}

const Tensor& Streams::float_output(int i, size_t j) {
  if (outputs_[j].empty()) outputs_[j] = run(Precision::Float, i, j, real_[j]);
  return outputs_[j];
}

void Streams::keep_float_outputs(int i) {
  for_own_batches([&](size_t j) { float_output(i, j); });
}

void Streams::run_together(int i, Precision precision, const std::vector<Group>& groups,
                           const Pass::OnGroup& on_group) {
  const bool is_float = precision == Precision::Float;
  double elsewhere = 0;
  const Timer timer;
  Pass pass(groups, true, [&](size_t g, const Fed& fed) {
    const Stopwatch watch(elsewhere);
    on_group(g, fed);
  });
  const Tensor y = model_.run(context(precision, &pass), i, i < 0 ? join(data_) : Batch{},
                              i < 0 ? Tensor{} : concatenate(is_float ? real_ : quantized_));
  for (size_t j = 0; is_float && j < batches(); ++j) outputs_[j] = samples_of(j, y);
  seconds.passes += timer.seconds() - elsewhere;
}

Tensor Streams::samples_of(size_t j, const Tensor& x) const {
  if (x.empty()) return x;
  const int64_t each = x.dim(0) / first_sample_.back();
  return x.slice(first_sample_[j] * each, first_sample_[j + 1] * each);
}

void Streams::advance(int i, bool needs_real, bool needs_quantized) {
  if (!needs_real && !needs_quantized) return;
  const bool same = model_.layers(i).empty();  // an embedding that is not quantized
  for_own_batches([&](size_t j) {
    if (needs_real || same) real_[j] = float_output(i, j);
    if (needs_quantized) quantized_[j] = same ? real_[j] : run(Precision::Fake, i, j, quantized_[j]);
    if (!needs_real) real_[j] = Tensor{};
    outputs_[j] = late_real_[j] = late_quantized_[j] = Tensor{};  // as soon as they are used
  });
  for (size_t j = 0; whole_ && ranks() > 1 && j < batches(); ++j) {
    for (Tensors* stream : {&real_, &quantized_}) {
      if (!owns(j)) (*stream)[j] = Tensor{};
      share((*stream)[j], owner(j));
    }
    outputs_[j] = Tensor{};
  }
  forget_late_start();
}

}  // namespace bcq

// BiLLM against the figures of an independent program, and its three ways to carry errors on.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "data/text/tokenizer.h"
#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/grid/binary.h"
#include "eval/save.h"
#include "quant/billm.h"
#include "tests/golden.h"
#include "tests/gptq_inputs.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

struct GoldenLayer {
  GoldenLayer() : x(golden(1, {1, 48, 32})), w(golden(2001, {6, 32})) {
    const Tensor common = golden(9001, {48});
    for (int64_t i = 0; i < x.size(); ++i) {
      x[i] += .6f * common[i / 32] + .3f;
      if (i % 32 == 11) x[i] *= 5;
    }
  }
  BinarizedWeight run(bool hessian, int64_t block, BillmInside inside = BillmInside::Official) const {
    BillmOptions options{inside, hessian, block, 10};
    return billm(w, hessian_of(x), options, "w", kNoWarning);
  }
  double error(const Tensor& q) const { return output_error(x, w, q) / (48 * 6); }
  Tensor x, w;
};

}  // namespace

// The published class, run on a CPU, has the same masks and weights to 5e-7.
TEST_CASE("BiLLM: masks, weights and errors of the golden layer") {
  const GoldenLayer layer;
  struct Case {
    bool hessian;
    int64_t block;
    std::vector<BillmBlock> blocks;
    std::vector<double> row;
    double sum, error;
  };
  for (const Case& c : {Case{true,
                             16,
                             {{2, 5.623849391937256, 52, 32, 12}, {4, 14.65298843383789, 57, 15, 24}},
                             {-.760714, -.760714, .554172, -.292711, -.292711, -.760714, .288527, .554172},
                             -3.757205,
                             .571190},
                        Case{true,
                             32,
                             {{2, 12.783950805664062, 145, 35, 12}},
                             {-.442251, -.442251, .336586, -.442251, -.442251, -.442251, .336586, .336586},
                             -5.534983,
                             .562379},
                        Case{false,
                             16,
                             {{3, .2876114249229431, 32, 46, 18}, {6, .3326627314090729, 29, 31, 36}},
                             {-.630486, -.601505, .730108, -.601505, -.145579, -.601505, .388281, .388281},
                             -5.353457,
                             .540731},
                        Case{false,
                             32,
                             {{7, .30862241983413696, 64, 86, 42}},
                             {-.565011, -.592666, .635612, -.592666, -.124002, -.592666, .224483, .52329},
                             -4.483766,
                             .832885}}) {
    CAPTURE(c.hessian);
    CAPTURE(c.block);
    const BinarizedWeight q = layer.run(c.hessian, c.block);
    REQUIRE(q.blocks.size() == c.blocks.size());
    for (size_t b = 0; b < q.blocks.size(); ++b) {
      CHECK(q.blocks[b].salient_columns == c.blocks[b].salient_columns);
      CHECK(std::abs(q.blocks[b].split / c.blocks[b].split - 1) < 1e-5);
      CHECK(q.blocks[b].small == c.blocks[b].small);
      CHECK(q.blocks[b].large == c.blocks[b].large);
      CHECK(q.blocks[b].salient == c.blocks[b].salient);
    }
    CHECK(begins_with(q.values, c.row));
    double sum = 0;
    for (int64_t i = 0; i < q.values.size(); ++i) sum += q.values[i];
    CHECK(std::abs(sum - c.sum) < 1e-5);
    CHECK(std::abs(layer.error(q.values) - c.error) < 2e-6);
  }
  CHECK(std::abs(layer.error(layer.run(true, 16, BillmInside::Solve).values) - .302907) < 2e-6);
  CHECK(std::abs(layer.error(layer.run(false, 16, BillmInside::Solve).values) - .492212) < 2e-6);
}

TEST_CASE("BiLLM: errors carried column by column cost less, on the same levels; what is stored") {
  const GoldenLayer layer;
  const BinarizedWeight official = layer.run(true, 32), sequential = layer.run(true, 32, BillmInside::Sequential);
  CHECK(layer.error(sequential.values) < layer.error(official.values));
  for (int64_t r = 0; r < 6; ++r) {  // one block: all that a row may hold stands in it
    std::set<float> levels;
    for (int64_t c = 0; c < 32; ++c) levels.insert(sequential.values[r * 32 + c]);
    CHECK(levels.size() <= 8);
  }
  CHECK(official.sign_bits == 145 + 35 + 2 * 12);
  CHECK(official.stored_bits == 2 * (145 + 35) + 2 * 12 + 8 * 16 * 6 + 32);
  CHECK(sequential.stored_bits == official.stored_bits);
}

TEST_CASE("BiLLM: errors carried on inside a block, layers in sequence, weights refitted: each has its effect") {
  if (sanitized()) {
    MESSAGE("skipped: it compares errors, and the tests below show sanitizers the same code");
    return;
  }
  const auto model = load_model("data/mini/opt");
  Batch batch;
  batch.windows = 16;
  batch.length = 64;
  batch.ids = Tokenizer::load("data/mini/opt").encode(read_text("data/mini/text/calib.txt").substr(0, 10000));
  REQUIRE(batch.ids.size() > 1024);
  batch.ids.resize(1024);
  std::vector<Batch> windows(16);  // of which the even and the odd ones choose the ridge of a refit
  for (size_t w = 0; w < windows.size(); ++w) {
    windows[w].windows = 1;
    windows[w].length = 64;
    windows[w].ids.assign(batch.ids.begin() + static_cast<std::ptrdiff_t>(64 * w),
                          batch.ids.begin() + static_cast<std::ptrdiff_t>(64 * (w + 1)));
  }
  const Tensor want = model->forward(kFloat, batch);
  struct Made {
    double error = 0;  // of the logits
    std::vector<Tensor> weights;
  };
  const auto make = [&](const BillmOptions& options) {
    model->clear();
    Billm method(options, {}, kNoWarning);
    calibrate(*model, windows, {&method});
    const Tensor y = model->forward({Precision::Fake}, batch);
    Made made;
    for (int64_t i = 0; i < y.size(); ++i) made.error += std::pow(static_cast<double>(y[i]) - want[i], 2);
    for (Layer* layer : model->all_layers()) made.weights.push_back(layer->weight_in(Precision::Fake).values());
    return made;
  };
  // Layers in the order they run: q, k and v of the first block, its output projection, fc1, fc2; the second block.
  const auto same = [](const Made& a, const Made& b, size_t layer) {
    return same_bits(a.weights[layer], b.weights[layer]);
  };
  BillmOptions options;
  options.most = 3;  // fewer columns to choose from are quicker
  const Made official = make(options);
  options.inside = BillmInside::Sequential;
  const Made inside = make(options);
  CHECK(inside.error < 0.8 * official.error);
  options.sequential = true;
  const Made in_order = make(options);
  for (const size_t k : {0, 1, 2}) CHECK(same(in_order, inside, k));
  for (const size_t k : {3, 4, 5}) CHECK_FALSE(same(in_order, inside, k));  // what is before them is rounded
  options.float_target = true;
  const Made refitted = make(options);
  for (const size_t k : {0, 1, 2}) CHECK(same(refitted, in_order, k));  // nothing to make up for yet
  CHECK_FALSE(same(refitted, in_order, 6));
  CHECK(refitted.error < 0.9 * in_order.error);
  options.centred = true;
  CHECK_FALSE(same(make(options), refitted, 0));
}

TEST_CASE("BiLLM: a network, compensated after it; the same on any number of threads") {
  const auto model = load_model(kOpt);
  const Batch batch = opt_batch();
  const auto run = [&] {
    model->clear();
    Billm method({}, {}, kNoWarning);
    calibrate(*model, {batch}, {&method});
    return model->forward({Precision::Fake}, batch);
  };
  CHECK(same_on_two_threads(run));
  for (const Layer* layer : model->all_layers()) CHECK(layer->quantized->right.is<Binary>());
  const Tensor want = model->forward(kFloat, batch), before = run();
  const auto error = [&](const Tensor& y) {
    double sum = 0;
    for (int64_t i = 0; i < y.size(); ++i) sum += std::pow(static_cast<double>(y[i]) - want[i], 2);
    return sum;
  };
  compensate(*model, {batch}, BcOptions{}, kSilent);
  CHECK(error(model->forward({Precision::Fake}, batch)) < error(before));
  CHECK_THROWS_AS(Billm({}, {{model->all_layers()[0], 4}}, kNoWarning), UsageError);
  CHECK_THROWS_AS(fake_quantize(Binary(1, 1), want), Error);
  // All that it can do at once, of windows that are halved to choose a ridge by.
  BillmOptions all;
  all.inside = BillmInside::Sequential;
  all.sequential = all.float_target = all.centred = true;
  model->clear();
  Billm method(all, {}, kNoWarning);
  calibrate(*model, {batch, batch}, {&method});
  for (const Layer* layer : model->all_layers()) CHECK(layer->quantized->right.is<Binary>());
  CHECK_FALSE(same_bits(model->forward({Precision::Fake}, batch), before));
}

TEST_CASE("BiLLM: what is stored is what is computed with, row by row, in bits and float16 levels") {
  const GoldenLayer layer;
  for (const BillmInside inside : {BillmInside::Official, BillmInside::Sequential}) {
    BillmOptions options{inside, true, 16, 10};
    const BinarizedWeight plain = billm(layer.w, hessian_of(layer.x), options, "w", kNoWarning);
    options.half = true;
    const BinarizedWeight q = billm(layer.w, hessian_of(layer.x), options, "w", kNoWarning);
    const Weight stored(q.planes);
    CHECK(same_bits(stored.values(), q.values));
    Tensor scratch;
    const float* rows = stored.rows(2, 5, scratch);
    CHECK(std::equal(rows, rows + 3 * 32, q.values.data + 2 * 32));
    for (int64_t i = 0; i < q.values.size(); ++i)  // levels of 2 in float16: to 2^-11, 4 terms
      CHECK(std::abs(q.values[i] - plain.values[i]) < 2e-3);
    const Binary grid(q.planes);
    CHECK(grid.sign_bits == q.sign_bits);
    CHECK(grid.stored_bits == q.stored_bits);
    CHECK(q.planes->salient_columns() == q.blocks[0].salient_columns + q.blocks[1].salient_columns);
  }
}

TEST_CASE("BiLLM: a saved model is the same to the last bit, and files that are not one are refused") {
  const auto model = load_model("data/mini/opt");
  Batch batch;
  batch.windows = 2;
  batch.length = 16;
  for (int32_t i = 0; i < 32; ++i) batch.ids.push_back(i * 7 + 3);
  BillmOptions options;
  options.half = true;
  Layer* const left_out = model->all_layers()[3];
  Billm method(options, {{left_out, 0}}, kNoWarning);
  calibrate(*model, {batch}, {&method});
  compensate(*model, {batch}, BcOptions{}, kSilent);
  const Folder folder;
  const Saved saved = save_model(*model, {folder.file("saved"), "bcq", false},
                                 {{"wbits", 1}, {"groupsize", nullptr}, {"method", "billm"}});
  const auto loaded = load_model(folder.file("saved"));
  CHECK(loaded->info().packed);
  CHECK(loaded->info().parameters == model->info().parameters);
  CHECK(same_bits(model->forward({Precision::Fake}, batch), loaded->forward({Precision::Fake}, batch)));
  double bits = 0, weights = 0;
  for (const Layer* layer : model->all_layers()) {
    CHECK((layer->binarized() != nullptr) == (layer != left_out));
    if (layer == left_out) continue;
    bits += layer->quantized->right.as<Binary>()->stored_bits;
    weights += static_cast<double>(layer->weight.size());
  }
  CHECK(saved.bits_per_weight == doctest::Approx(bits / weights).epsilon(1e-9));  // biases are replaced, not added

  const std::string file = folder.file("saved/model.safetensors"), name = "model.decoder.layers.0.fc1.";
  const SafeTensors kept = SafeTensors::open(file);
  const auto refusal = [&](const std::string& tensor, const TensorInfo* changed) {
    auto tensors = kept.tensors();
    if (changed)
      tensors[name + tensor] = *changed;
    else
      tensors.erase(name + tensor);
    const Folder other;
    write_safetensors(other.file("model.safetensors"), tensors);
    write_text(other.file("config.json"), read_file(folder.file("saved/config.json")));
    return message_of<InputError>([&] { load_model(other.path); });
  };
  for (const char* tensor : {"levels", "parts", "salient"}) CHECK(contains(refusal(tensor, nullptr), tensor));
  const TensorInfo floats = store(Tensor({512, 4}), DType::F32, "x"),
                   levels = store(Tensor({512, 2, 8}), DType::F16, "x");
  CHECK(contains(refusal("signs", &floats), "32 bits"));
  CHECK(contains(refusal("levels", &floats), "blocks"));
  CHECK(contains(refusal("levels", &levels), "group_size 128"));
  TensorInfo broken = store(Tensor({512, 1, 8}), DType::F16, "x");
  std::vector<std::byte> bytes(broken.bytes, broken.bytes + broken.size());
  bytes[155] = std::byte{0x7c};  // infinity
  broken.bytes = bytes.data();
  const std::string message = refusal("levels", &broken);
  CHECK_MESSAGE(contains(message, "is infinite"), message);
}

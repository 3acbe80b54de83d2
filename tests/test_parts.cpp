// Parts of networks: which layers share an input, what makes it and can be scaled in their place, and where a
// compensation of an output goes.
#include "models/layers.h"
#include "tests/model_fixtures.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const Context kFake{Precision::Fake, nullptr, nullptr};
const std::string kAll[] = {kVit,   kDeit,          kSwin,  kOpt,       kOptPost, kOptPlain,
                            kBloom, kBloomResidual, kLlama, kLlamaBias, kQwen3};

Batch batch_of(const std::string& fixture) {
  return load_model(fixture)->info().family == Family::Vision ? pixels_of(fixture) : ids_of(fixture);
}

// What every layer is fed.
struct Inputs : Observer {
  void input(const Layer& layer, const Tensor& a, const Tensor&) override { of[&layer] = a; }
  std::map<const Layer*, Tensor> of;
};

// Sources of a part's groups: n a norm, l a layer, - none.
std::string sources(const Part& part) {
  std::string kinds;
  for (const LayerGroup& group : part.groups) kinds += group.source.norm ? 'n' : group.source.layer ? 'l' : '-';
  return kinds;
}

void scale_at(Tensor& vector, int64_t at, float factor) {
  if (vector.empty()) return;
  vector = vector.clone();
  vector[at] *= factor;
}

// Channel c of what a source makes, times a factor.
void scale_source(const FoldSource& source, int64_t c, float factor) {
  if (source.norm) {
    scale_at(source.norm->weight, c, factor);
    scale_at(source.norm->bias.loaded, c, factor);
    return;
  }
  const int64_t row = source.rows.empty() ? c : source.rows.at(static_cast<size_t>(c));
  Tensor weight = source.layer->weight.values().clone();
  for (int64_t k = 0; k < weight.dim(1); ++k) weight[row * weight.dim(1) + k] *= factor;
  source.layer->weight = weight;
  scale_at(source.layer->bias.loaded, row, factor);
}

void scale_input(Layer& layer, int64_t c, float factor) {
  Tensor weight = layer.weight.values().clone();
  for (int64_t row = 0; row < weight.dim(0); ++row) weight[row * weight.dim(1) + c] *= factor;
  layer.weight = weight;
}

// Channels that are not 0 everywhere, as some are after a ReLU: the first, the middle one and the last.
std::vector<int64_t> live_channels(const Tensor& x) {
  std::vector<int64_t> live;
  for (int64_t c = 0; c < x.dim(-1); ++c) {
    bool any = false;
    for (int64_t r = 0; r < x.rows(); ++r) any |= x[r * x.dim(-1) + c] != 0;
    if (any) live.push_back(c);
  }
  REQUIRE(live.size() >= 3);
  return {live.front(), live[live.size() / 2], live.back()};
}

double column_mean(const Tensor& x, int64_t c) {
  double sum = 0;
  for (int64_t r = 0; r < x.rows(); ++r) sum += x[r * x.dim(-1) + c];
  return sum / static_cast<double>(x.rows());
}

}  // namespace

TEST_CASE("parts: the layers of a group are fed one tensor, and those of two groups are not") {
  for (const std::string& fixture : kAll) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    Inputs seen;
    model->forward({Precision::Float, nullptr, &seen}, batch_of(fixture));
    std::map<const float*, const Layer*> first_of;
    for (int i = -1; i <= model->depth(); ++i)
      for (const LayerGroup& group : model->part(i).groups) {
        REQUIRE_FALSE(group.layers.empty());
        const float* data = seen.of.at(group.layers[0]).data;
        CHECK(first_of.emplace(data, group.layers[0]).second);
        for (const Layer* layer : group.layers) {
          CAPTURE(layer->name);
          CHECK(seen.of.at(layer).data == data);
          CHECK((layer->is_linear() || group.layers.size() == 1));
          CHECK((i < 0 || i >= model->depth() || layer->name.rfind(model->part(i).name + ".", 0) == 0));
        }
      }
  }
}

TEST_CASE("parts: which groups have a source, in every family") {
  struct Want {
    std::string fixture, block, head;
  };
  for (const Want& want : {Want{kVit, "nl-ln-", "n"}, Want{kDeit, "nl-ln-", "--"}, Want{kSwin, "nl-ln-", "n"},
                           Want{kOpt, "nlnl", ""}, Want{kOptPost, "-l-l", ""}, Want{kOptPlain, "-l--", ""},
                           Want{kBloom, "nln-", ""}, Want{kBloomResidual, "-l--", ""}, Want{kLlama, "n-nl", ""},
                           Want{kLlamaBias, "nlnl", ""}, Want{kQwen2, "nlnl", ""}}) {
    CAPTURE(want.fixture);
    const auto model = load_model(want.fixture);
    for (int i = 0; i < model->depth(); ++i)
      CHECK(sources(model->part(i)) == (model->kind(i) == Part::Kind::Merge ? "n" : want.block));
    CHECK(model->kind(-1) == Part::Kind::Embedding);
    CHECK(model->kind(model->depth()) == Part::Kind::Head);
    CHECK(sources(model->part(model->depth())) == want.head);
    CHECK(sources(model->part(-1)) == (model->info().family == Family::Vision ? "-" : ""));
  }
}

TEST_CASE("parts: a source scaled is its group's input scaled, and undone in the group the network is the same") {
  for (const std::string& fixture : kAll) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    const Batch batch = batch_of(fixture);
    Inputs before;
    const Tensor logits = model->forward({Precision::Float, nullptr, &before}, batch);
    for (int i = -1; i <= model->depth(); ++i)
      for (const LayerGroup& group : model->part(i).groups) {
        if (!group.source.norm && !group.source.layer) continue;
        if (group.layers[0]->role == Role::QK) continue;  // keys are shifted, not scaled
        CAPTURE(group.layers[0]->name);
        const Tensor& x = before.of.at(group.layers[0]);
        const int64_t C = x.dim(-1);
        CHECK((group.source.rows.empty() || static_cast<int64_t>(group.source.rows.size()) == C));
        for (const int64_t c : live_channels(x)) {
          CAPTURE(c);
          scale_source(group.source, c, 2);
          Inputs after;
          CHECK_FALSE(same_bits(model->forward({Precision::Float, nullptr, &after}, batch), logits));
          const Tensor& y = after.of.at(group.layers[0]);
          REQUIRE(y.shape == x.shape);
          int64_t wrong = 0;
          for (int64_t at = 0; at < x.size(); ++at) wrong += y[at] != (at % C == c ? 2 * x[at] : x[at]);
          CHECK(wrong == 0);
          for (Layer* layer : group.layers) scale_input(*layer, c, 0.5f);
          CHECK(same_bits(model->forward(kFloat, batch), logits));
          scale_source(group.source, c, 0.5f);
          for (Layer* layer : group.layers) scale_input(*layer, c, 2);
        }
      }
    CHECK(same_bits(model->forward(kFloat, batch), logits));
  }
}

TEST_CASE("parts: a block says whether it is its input plus what its two branches make") {
  for (const std::string& fixture : kAll) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    Tensor x = model->embed(kFloat, batch_of(fixture));
    for (int i = 0; i < model->depth(); ++i) {
      Record seen;
      const Part part = model->part(i);
      const Tensor y = model->block({Precision::Float, nullptr, &seen}, i, x);
      if (part.kind == Part::Kind::Block) {
        double off = 0;  // in means over tokens: Swin's attention has them in another order
        for (int64_t c = 0; c < x.dim(-1); ++c) {
          double sum = column_mean(x, c);
          for (const Layer* layer : part.layers())
            if (layer->role == Role::Proj || layer->role == Role::Fc2)
              sum += column_mean(seen.outputs.at(layer->name), c);
          off = std::max(off, std::abs(column_mean(y, c) - sum));
        }
        const bool adds_up = part.is_sum || fixture == kSwin;  // in windows, so that sums are not taken token by token
        CHECK((off < 1e-5) == adds_up);
        CHECK((off > 1e-3) == !adds_up);
      }
      x = y;
    }
    const bool swin = fixture == kSwin;
    int stages = 0;
    for (int i = 0; i < model->depth(); ++i) stages += model->part(i).ends_stage;
    CHECK((stages > 1) == swin);
    if (swin) CHECK(model->part(model->depth() - 1).ends_stage);
  }
}

TEST_CASE("parts: the output of a pre-norm block folds into fc2, of a post-norm block into its norm") {
  for (const std::string& fixture : {kOpt, kOptPost, kOptPlain, kBloom, kLlama, kVit, kSwin}) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    const Tensor x = model->embed(kFloat, batch_of(fixture)), y = model->block(kFloat, 0, x);
    const int64_t N = x.dim(1), D = x.dim(2);
    const Part part = model->part(0);
    Layer& fc2 = *part.layers().back();
    CHECK(part.output.kind == Point::Kind::Block);
    CHECK(part.output.name == part.name);
    REQUIRE(part.output.folds_into.size() == 1);
    CHECK((part.output.folds_into[0] == &fc2.bias) == (fixture != kOptPost));

    const Tensor b = random({D}, 1), rows = random({N, D}, 2);
    part.output.add(b);
    model->part(0).output.add(b);  // on top, through a point of its own
    CHECK(fc2.bias.compensated.empty() == (fixture == kOptPost));
    CHECK(part.output.added[0]->empty());
    Tensor z = model->block(kFake, 0, x), want = y.clone();
    for (int64_t i = 0; i < y.size(); ++i) want[i] += 2 * b[i % D];
    CHECK(relative_error(z, want) < 1e-6);
    part.output.add(rows);
    CHECK(same_bits(*part.output.added[0], rows));
    z = model->block(kFake, 0, x);
    for (int64_t i = 0; i < y.size(); ++i) want[i] += rows[i % (N * D)];
    CHECK(relative_error(z, want) < 1e-6);
    CHECK(same_bits(model->block(kFloat, 0, x), y));
    CHECK_THROWS_AS(part.output.add(random({N + 1, D}, 3)), Error);
    part.output.clear();
    CHECK(same_bits(model->block(kFake, 0, x), y));
  }
}

TEST_CASE("parts: a compensation of the logits goes into every head there is") {
  const std::pair<std::string, size_t> heads[] = {{kVit, 1}, {kDeit, 2}, {kSwin, 1}};
  for (const auto& head : heads) {
    const std::string& fixture = head.first;
    const size_t count = head.second;
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    const Batch batch = pixels_of(fixture);
    const Tensor y = model->forward(kFloat, batch), b = random({y.dim(1)}, 1);
    const Point point = model->model_point();
    CHECK(point.kind == Point::Kind::Model);
    REQUIRE(point.folds_into.size() == count);
    point.add(b);
    for (const Layer* head : model->layers(model->depth())) {
      CHECK(head->added.empty());
      for (int64_t c = 0; c < b.size(); ++c) CHECK(head->bias.compensated[c] == head->bias.loaded[c] + b[c]);
    }
    const Tensor z = model->forward(kFake, batch);
    Tensor want = y.clone();
    for (int64_t i = 0; i < y.size(); ++i) want[i] += b[i % b.size()];
    CHECK(relative_error(z, want) < 1e-6);
    CHECK(same_bits(model->forward(kFloat, batch), y));
    point.clear();
    CHECK(same_bits(model->forward(kFake, batch), y));
  }
  for (const std::string& fixture : {kOpt, kBloom, kLlama}) {  // their heads are not quantized
    const auto model = load_model(fixture);
    CHECK(model->model_point().folds_into.empty());
    CHECK(model->model_point().added.empty());
  }
}

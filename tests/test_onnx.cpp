// ONNX graphs compute what the engine computes: every method, family and option, run operation by operation; the file
// is the graph, by its schema; what this build or the format refuses.
#include <doctest/doctest.h>

#ifdef BCQ_ONNX
#include <onnx/checker.h>
#include <onnx/onnx_pb.h>
#endif

#include <filesystem>
#include <set>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/file/onnx_graph.h"
#include "engine/file/onnx_grid.h"
#include "engine/grid/log_grid.h"
#include "engine/grid/offset.h"
#include "engine/grid/table.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "eval/run.h"
#include "eval/save.h"
#include "eval/vision.h"
#include "tests/cli.h"
#include "tests/onnx_run.h"
#include "tests/quantized_vision.h"
#include "tests/vit_options.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

namespace {

std::string bytes_of(const OnnxConstant& c) {
  return std::visit(
      [](const auto& v) { return std::string(reinterpret_cast<const char*>(v.data()), v.size() * sizeof v[0]); },
      c.values);
}

// Images whose logits are the engine's but for rounding, of three. Where a value lies at a boundary of its grid, other
// roundings of the norms before it may move it by a step.
int images_that_agree(const Model& model, Precision precision) {
  Batch batch;
  batch.pixels = random({3, 3, model.info().image.height, model.info().image.width}, 9, 2);
  const Tensor want = model.forward({precision}, batch), got = OnnxRun()(model.onnx(precision), batch.pixels);
  REQUIRE(got.shape == want.shape);
  int agreeing = 0;
  for (int64_t b = 0; b < 3; ++b) agreeing += relative_error(got.slice(b, b + 1), want.slice(b, b + 1)) < 1e-4;
  return agreeing;
}

std::set<std::string> ops_of(const OnnxGraph& graph) {
  std::set<std::string> ops;
  for (const OnnxNode& node : graph.nodes) ops.insert(node.op);
  return ops;
}

Tensor rounded_by_graph(const Grid& grid, const Tensor& x) {
  OnnxGraph graph;
  const OnnxRounded rounded = onnx_round_heads(graph, grid, OnnxGraph::kInput, x.dim(1));
  graph.finish(onnx_rescale(graph, rounded, {}, rounded.value));
  return OnnxRun()(graph, x);
}

}  // namespace

TEST_CASE("onnx: activations are rounded as the grids round them, to the same values") {
  Tensor x = random({2, 4, 5, 6}, 3, 3);
  for (int64_t i = 0; i < 40; ++i) x[i] = 0.05f * static_cast<float>(i - 20);  // where codes change
  Tensor weights = random({2, 4, 5, 6}, 4);
  for (int64_t i = 0; i < weights.size(); ++i) weights[i] = std::abs(weights[i]) * std::abs(weights[i]);
  for (const int bits : {2, 3, 4, 6, 8, 10}) {
    CAPTURE(bits);
    const auto same = [&](const Grid& grid, const Tensor& values) {
      CAPTURE(grid.name());
      CHECK(relative_error(rounded_by_graph(grid, values), fake_quantize(grid, values)) == 0);
    };
    same(Uniform{bits, 0, {0.1f}}, x);
    same(Uniform{bits, 1, {0.1f, 0.3f}}, x);
    same(Asymmetric{bits, 0.1f, (1 << bits) / 3}, x);
    same(Asymmetric{bits, 0.1f, -3}, x);    // does not hold 0
    same(Asymmetric{bits, 0.01f, 700}, x);  // no zero point of 8 bits
    same(Asymmetric{bits, 1, {0.1f, 0.02f, 0.3f, 0.05f}, {1, 0, 2, 3}}, x);
    same(TwinGelu{bits, 0.2f, 0.01f}, x);
    same(TwinSoftmax{bits, 0.06f, true}, weights);
    same(TwinSoftmax{bits, 0.06f, false}, weights);
    const std::vector<float> offsets = {0.01f, 0.02f, -0.03f, 0, 0.5f, -0.2f};
    same(Offset{Uniform{bits, 0, {0.1f}}, offsets}, x);
    same(Offset{TwinGelu{bits, 0.2f, 0.01f}, offsets}, x);
    if (bits > 8) continue;
    const Table table(bits, 0.02f, 90, {3, 17, 90, 255}), other(bits, 0.01f, 128, {0, 100, 129});
    same(table, x);
    same(Table(1, {table, other}), x);
    same(Table(1, {other, other}), x);
    same(Log2{bits, 0.9f}, weights);
    same(LogSqrt2{bits, 0.9f, true}, weights);
    same(AdaLog{bits, 2.f, 20, AdaLog::kGeluShift}, x);
  }
  OnnxGraph graph;
  CHECK(onnx_round(graph, {}, "x") == "x");
  CHECK(contains(message_of<UsageError>([&] { onnx_round(graph, Dynamic{8}, "x"); }), "dynamic"));
}

TEST_CASE("onnx: float networks of every option") {
  for (const std::string& source : {kVit, kDeit, kSwin, std::string("tests/fixtures/swin_hf")}) {
    CAPTURE(source);
    CHECK(images_that_agree(*load_model(source), Precision::Float) == 3);
  }
  for (const std::string& name : all_cases()) {
    CAPTURE(name);
    CHECK(images_that_agree(*Case(name).load(), Precision::Float) == 3);
  }
  CHECK_THROWS_AS(load_model(kOpt)->onnx(Precision::Float), UsageError);
}

TEST_CASE("onnx: every method, family and width, with compensations of both forms") {
  const std::pair<int, int> widths[] = {{4, 4}, {6, 6}, {8, 8}};
  const json bc[] = {{{"bc", "position"}, {"bc_sites", "conv,linear,matmul,block,model"}}, {{"bc", "channel"}}, {}};
  int images = 0, agreeing = 0;
  for (const std::string& source : {kVit, kDeit, kSwin})
    for (const std::string method : {"base-ptq", "easyquant", "ptq4vit", "repq-vit", "noisyquant", "joint"})
      for (size_t i = 0; i < 3; ++i) {
        CAPTURE(source);
        CAPTURE(method);
        CAPTURE(widths[i].first);
        json options = bc[i];
        if (method == "joint" && i > 0) options = json::object();
        if (method == "joint" && i == 1) options = {{"qwt", true}};
        const auto model = load_model(source);
        quantize_as(*model, recipe_of(method, widths[i].first, widths[i].second, options));
        const int n = images_that_agree(*model, Precision::Fake);
        CHECK(n >= 1);
        agreeing += n;
        images += 3;
      }
  CAPTURE(images);
  CHECK(agreeing >= images - 6);
}

TEST_CASE("onnx: other grids, floats beside them, LayerScale, a saved model") {
  const std::tuple<std::string, int, int, json> cases[] = {{"joint", 4, 4, {{"act_grid", "uniform"}}},
                                                           {"joint", 4, 4, {{"act_grid", "adalog"}}},
                                                           {"joint", 32, 4, {}},
                                                           {"joint", 4, 32, {}},
                                                           {"ptq4vit", 5, 7, {{"pixels", "quantized"}}},
                                                           {"ptq4vit", 8, 8, {{"matmul_intervals", "layer"}}},
                                                           {"ptq4vit", 8, 12, {{"softmax_twin", "clean"}}}};
  for (const auto& of : cases) {
    const std::string method = std::get<0>(of);
    const int wbits = std::get<1>(of), abits = std::get<2>(of);
    CAPTURE(method);
    CAPTURE(wbits);
    CAPTURE(abits);
    const auto model = load_model(kVit);
    quantize_as(*model, recipe_of(method, wbits, abits, std::get<3>(of)));
    CHECK(images_that_agree(*model, Precision::Fake) >= 2);
    const auto ops = ops_of(model->onnx(Precision::Fake));
    CHECK((ops.count("QuantizeLinear") > 0) == (abits <= 8));
  }
  for (const std::string name : {"deit3", "hf_dinov2", "reg4_gap"})
    for (const std::string method : {"ptq4vit", "repq-vit"}) {
      CAPTURE(name);
      const auto model = Case(name).load();
      quantize_as(*model, recipe_of(method, 6, 6, {{"bc", "channel"}}));
      CHECK(images_that_agree(*model, Precision::Fake) >= 2);
    }
  const Folder folder;
  const Recipe recipe = recipe_of("joint", 4, 4);
  const auto model = load_model(kSwin);
  quantize_as(*model, recipe);
  save_vision(*model, {folder.file("saved"), "bcq", false}, recipe);
  const auto loaded = load_model(folder.file("saved"));
  const OnnxGraph a = model->onnx(Precision::Fake), b = loaded->onnx(Precision::Fake);
  REQUIRE(a.constants.size() == b.constants.size());
  for (size_t i = 0; i < a.constants.size(); ++i) CHECK(bytes_of(a.constants[i]) == bytes_of(b.constants[i]));
}

TEST_CASE("onnx: a weight that is not on its grid") {
  const Grid grid = Uniform{4, 0, {0.1f, 0.2f}};
  Tensor w = fake_quantize(grid, random({2, 3}, 1));
  for (const bool meets_codes : {false, true}) {
    OnnxGraph graph;
    onnx_weight(graph, grid, w, meets_codes);
    CHECK(std::holds_alternative<std::vector<int8_t>>(graph.constants[0].values));
    CHECK(graph.constants[0].shape == Shape{3, 2});
    CHECK((graph.nodes[0].op == "DequantizeLinear") == meets_codes);
  }
  OnnxGraph graph;
  onnx_weight(graph, Uniform{8, 0, {0.1f}}, w, true);
  CHECK(std::holds_alternative<std::vector<uint8_t>>(graph.constants[0].values));
  w[4] += 0.01f;
  CHECK_THROWS_AS(onnx_weight(graph, grid, w, true), Error);
}

#ifdef BCQ_ONNX

namespace {

onnx::ModelProto parsed(const std::string& bytes) {
  onnx::ModelProto model;
  REQUIRE(model.ParseFromString(bytes));
  return model;
}

}  // namespace

TEST_CASE("onnx: the file is the graph, and passes the format's own checker") {
  for (const std::string& source : {kVit, kDeit, kSwin})
    for (const std::string method : {"ptq4vit", "joint"}) {
      const Folder folder;
      const Recipe recipe = recipe_of(method, 4, 4);
      const auto model = load_model(source);
      quantize_as(*model, recipe);
      const SaveOptions save{folder.file("saved"), "onnx", false};
      const Saved saved = save_onnx(*model, save, recipe);
      const std::string bytes = read_text(folder.file("saved/model.onnx"));
      CHECK(saved.bytes == static_cast<int64_t>(bytes.size()));
      const onnx::ModelProto file = parsed(bytes);
      CHECK_NOTHROW(onnx::checker::check_model(file));
      CHECK(file.producer_name() == "bcq");
      CHECK(file.opset_import(0).version() == 17);
      CHECK(std::any_of(file.metadata_props().begin(), file.metadata_props().end(), [&](const auto& p) {
        return p.key() == "bcq.recipe" && json::parse(p.value()) == to_json(recipe);
      }));
      const OnnxGraph graph = model->onnx(Precision::Fake);
      REQUIRE(file.graph().node_size() == static_cast<int>(graph.nodes.size()));
      for (size_t i = 0; i < graph.nodes.size(); ++i) {
        const onnx::NodeProto& node = file.graph().node(static_cast<int>(i));
        CHECK(node.op_type() == graph.nodes[i].op);
        CHECK(std::equal(node.input().begin(), node.input().end(), graph.nodes[i].inputs.begin()));
        CHECK(node.attribute_size() == static_cast<int>(graph.nodes[i].attributes.size()));
      }
      REQUIRE(file.graph().initializer_size() == static_cast<int>(graph.constants.size()));
      for (size_t i = 0; i < graph.constants.size(); ++i) {
        const onnx::TensorProto& tensor = file.graph().initializer(static_cast<int>(i));
        CHECK(std::equal(tensor.dims().begin(), tensor.dims().end(), graph.constants[i].shape.begin()));
        CHECK(tensor.raw_data() == bytes_of(graph.constants[i]));
      }
      CHECK(file.graph().input(0).type().tensor_type().shape().dim(0).dim_param() == "batch");
      CHECK(read_json(folder.file("saved/config.json")).contains("bcq_onnx"));
      CHECK_NOTHROW(check_target(save, model->info().weights));  // it is ours, and may be replaced
    }
}

TEST_CASE("onnx: imagenet writes float, quantized and saved models") {
  const cli::Folder folder;
  const auto imagenet = [&](const std::string& arguments) {
    return cli::run("imagenet --data data/mini/images/val --limit 2 " + arguments);
  };
  const auto target = [&](const char* name) { return (folder.path / name).string(); };
  const std::string ptq = " --calib-data data/mini/images/calib --method base-ptq --calib-images 2 --save ";
  CHECK(imagenet("--model data/mini/vit --format onnx --save " + target("float")).code == 0);
  CHECK(imagenet("--model data/mini/vit --format onnx" + ptq + target("eight")).code == 0);
  CHECK(imagenet("--model data/mini/vit" + ptq + target("saved")).code == 0);
  CHECK(imagenet("--model " + target("saved") + " --format onnx --save " + target("again")).code == 0);
  const auto size = [&](const char* name) { return fs::file_size(folder.path / name / "model.onnx"); };
  CHECK(size("eight") < size("float") / 2);
  const auto graph = [&](const char* name) {
    return parsed(read_text(target(name) + "/model.onnx")).graph().SerializeAsString();
  };
  CHECK(graph("eight") == graph("again"));
}

#else

TEST_CASE("onnx: a build without it says so, before any work") {
  CHECK(contains(message_of<UsageError>([] { require_onnx(); }), "make ONNX=1"));
  CHECK_THROWS_AS(onnx_bytes({}, {}), UsageError);
  const cli::Result result =
      cli::run("imagenet --model data/mini/vit --data data/mini/images/val --save x --format onnx");
  CHECK(result.code == 2);
  CHECK(contains(result.err, "make ONNX=1"));
}

#endif

TEST_CASE("onnx: options that do not go together") {
  const auto refused = [](const std::string& arguments, const char* part) {
    const cli::Result result = cli::run("imagenet --model data/mini/vit --data data/mini/images/val " + arguments);
    CHECK(result.code == 2);
    CHECK(contains(result.err, part));
  };
  refused("--format onnx", "--format belongs to --save");
  refused("--format tflite --save x", "tflite");
  refused("--save x", "give a --method");
}

// Every kind of grid that can be read from its description: a new one is a row here. Affine has none: it comes with
// the codes of its weight (engine/gemm/packed.h).
#include "engine/core/check.h"
#include "engine/grid/grid.h"
#include "engine/grid/twin_gelu.h"
#include "engine/grid/twin_softmax.h"
#include "engine/grid/uniform.h"

namespace bcq {
namespace {

struct Row {
  const char* name;
  Grid (*read)(const Fields& fields);
};
constexpr Row kGrids[] = {
    {"float", [](const Fields&) { return Grid{}; }},
    {"uniform", Uniform::read},
    {"twin-gelu", TwinGelu::read},
    {"twin-softmax official", [](const Fields& f) { return TwinSoftmax::read(f, true); }},
    {"twin-softmax clean", [](const Fields& f) { return TwinSoftmax::read(f, false); }},
};

}  // namespace

Grid read_grid(const std::string& name, const Fields& fields) {
  std::string names;
  for (const Row& row : kGrids) {
    if (name == row.name) return row.read(fields);
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  throw InputError(format("there is no grid \"%s\": use one of %s", name, names));
}

}  // namespace bcq

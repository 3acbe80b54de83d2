// Every kind of grid that can be read from its description: a new one is a row here.
#include "engine/core/check.h"
#include "engine/grid/affine.h"
#include "engine/grid/log_grid.h"
#include "engine/grid/offset.h"
#include "engine/grid/table.h"
#include "engine/grid/twin.h"
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
    {"uniform+offset", [](const Fields& f) { return Offset::read(f, Uniform::read(f)); }},
    {"twin-gelu+offset", [](const Fields& f) { return Offset::read(f, TwinGelu::read(f)); }},
    {"asymmetric", Asymmetric::read},
    {"affine", Affine::read},
    {"log2", [](const Fields& f) { return Log2::read(f, false); }},
    {"log2+zero", [](const Fields& f) { return Log2::read(f, true); }},
    {"log-sqrt2", [](const Fields& f) { return LogSqrt2::read(f, false); }},
    {"log-sqrt2+zero", [](const Fields& f) { return LogSqrt2::read(f, true); }},
    {"adalog", [](const Fields& f) { return AdaLog::read(f, false); }},
    {"adalog+zero", [](const Fields& f) { return AdaLog::read(f, true); }},
    {"table", Table::read},
    {"dynamic", Dynamic::read},
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

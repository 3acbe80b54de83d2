#include "eval/results.h"

#include <cmath>
#include <iomanip>
#include <sstream>

#include "engine/core/format.h"
#include "engine/file/json.h"

namespace bcq {

double number_in(const json& record, const char* key) {
  const auto found = record.find(key);
  return found != record.end() && found->is_number() ? found->get<double>() : NAN;
}
std::string text_in(const json& record, const char* key) {
  const auto found = record.find(key);
  return found == record.end() || found->is_null() ? ""
         : found->is_string()                      ? found->get<std::string>()
                                                   : found->dump();
}

std::string number_text(double x, int decimals) {
  std::ostringstream text;
  if (std::isfinite(x)) text << std::fixed << std::setprecision(decimals) << x;
  return text.str();
}

bool is_vision(const json& record) { return record.contains("top1"); }
bool is_result(const json& record) {
  return record.is_object() && (is_vision(record) || record.contains("perplexity")) && record.contains("model");
}

std::string label_of(const json& record) {
  std::string label = text_in(record, "method");
  const double bits = number_in(record, "wbits"), group = number_in(record, "groupsize");
  if (bits < 32) {
    const double abits = number_in(record, "abits");
    label += is_vision(record) || abits < 32 ? format(" W%.0f", bits) + (abits > 0 ? format("A%.0f", abits) : "")
                                             : format(" %.0f bit", bits);
    if (group > 0) label += format(" g%.0f", group);
  }
  if (const std::string inside = text_in(record, "billm_inside"); !inside.empty() && inside != "official")
    label += " " + inside;
  const std::string bc = text_in(record, "bc");
  const bool part = text_in(record, "method") == "joint" && bc == "channel";  // of the method
  if (!bc.empty() && bc != "none" && !part) label += " + BC (" + bc + ")";
  return record.value("qwt", json()) == true ? label + " + QwT" : label;
}

}  // namespace bcq

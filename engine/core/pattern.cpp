#include "engine/core/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/core/check.h"

namespace bcq {
namespace {

std::string message_of(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

Pattern::Pattern(std::string expression) : expression_(std::move(expression)) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression_.data()), expression_.size(), 0, &error, &offset, nullptr);
  require_usage(code != nullptr, "\"%s\" is not a regular expression: %s", expression_, message_of(error));
  code_ = {code, [](pcre2_code* c) { pcre2_code_free(c); }};
}

bool Pattern::found_in(const std::string& name) const {
  const std::shared_ptr<pcre2_match_data> match(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  const int found = pcre2_match(static_cast<const pcre2_code*>(code_.get()), reinterpret_cast<PCRE2_SPTR>(name.data()),
                                name.size(), 0, 0, match.get(), nullptr);
  require_usage(found >= 0 || found == PCRE2_ERROR_NOMATCH, "\"%s\": looking for it in %s: %s", expression_, name,
                message_of(found));
  return found >= 0;
}

}  // namespace bcq

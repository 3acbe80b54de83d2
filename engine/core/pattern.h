// Regular expressions a user gives, of Perl's syntax (PCRE2): looked for anywhere in a name.
#pragma once
#include <memory>
#include <string>

namespace bcq {

class Pattern {
 public:
  // UsageError when it is no regular expression.
  explicit Pattern(std::string expression);
  // UsageError when the search needs more steps than PCRE2 allows.
  bool found_in(const std::string& name) const;

 private:
  std::string expression_;
  std::shared_ptr<void> code_;
};

}  // namespace bcq

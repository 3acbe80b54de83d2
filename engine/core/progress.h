// How long-running functions report their progress and their warnings to the caller.
#pragma once
#include <functional>
#include <string>

namespace bcq {

// done of total, in any unit; called from one thread, in order.
using Progress = std::function<void(const std::string& what, double done, double total)>;
// Something the user should know although the run goes on.
using Warn = std::function<void(const std::string& message)>;

}  // namespace bcq

// How long work tells whoever waits for it: what is being done, and how far it is.
#pragma once
#include <functional>
#include <string>

namespace bcq {

// done of total, in any unit; called from one thread, in order.
using Progress = std::function<void(const std::string& what, double done, double total)>;
// Something the user should know although the run goes on.
using Warn = std::function<void(const std::string& message)>;

}  // namespace bcq

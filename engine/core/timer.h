// Wall time: since a timer was made, and of work that is done again and again.
#pragma once
#include <algorithm>
#include <chrono>
#include <limits>

namespace bcq {

class Timer {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Adds the time from when it was made until it goes out of scope.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += timer_.seconds(); }

 private:
  double& seconds_;
  Timer timer_;
};

// The least time of `repeats` runs, at least one: other work on the machine can only add to it. A run before them warms
// caches up and does not count.
template <class Work>
double best_seconds(int repeats, const Work& work) {
  work();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    const Timer timer;
    work();
    best = std::min(best, timer.seconds());
  }
  return best;
}

}  // namespace bcq

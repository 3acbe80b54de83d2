// Wall time: since a timer was made, and of work that is done again and again.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

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

// The median of one value or more; of an even number the upper one.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The median over `repeats` runs, at least one; a run before them warms caches up and does not count.
template <class Work>
double median_seconds(int repeats, const Work& work) {
  work();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const Timer timer;
    work();
    seconds.push_back(timer.seconds());
  }
  return median(std::move(seconds));
}

}  // namespace bcq

// What the programs share: exit codes, progress on stderr, and facts about the run.
//
// Exit codes: 0 done; 1 the run failed; 2 wrong usage; 3 a model or data file is
// invalid; 4 finished, but some of the data was left out; 130 interrupted (the shell's own). Results go to stdout,
// everything else to stderr.
#pragma once
#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"

namespace bcq {

const char* version();  // git describe of the sources

// Thrown by a program that has printed its results, but had to leave out some of its data.
struct Incomplete : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Parse the command line and run body(); turns every error into a message and an exit code.
int run_program(CLI::App& app, int argc, char** argv, const std::function<void()>& body);

// --threads, which every program has; applies it.
void add_threads_option(CLI::App& app);

// Shows work on stderr with the time left: one line rewritten on a terminal, else a line every 10 s.
class ProgressLine {
 public:
  explicit ProgressLine(std::string prefix = "") : prefix_(std::move(prefix)) {}
  ~ProgressLine() { finish(); }
  void operator()(const std::string& what, double done, double total);
  void finish();  // ends the line; called before anything else is printed
  Progress callback() {
    return [this](const std::string& what, double done, double total) { (*this)(what, done, total); };
  }
  // Collects warnings and prints each once it is given.
  Warn warn() {
    return [this](const std::string& message) { warning(message); };
  }
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  using Clock = std::chrono::steady_clock;
  void warning(const std::string& message);
  std::string prefix_, what_;
  Clock::time_point start_, last_;
  bool open_ = false;
  std::vector<std::string> warnings_;
};

// The members every record has: tool, version, threads, isa, blas, peak_rss_mb.
json run_facts();
// Write records as JSON to `path` ("-": stdout); nothing when path is empty.
void write_record(const std::string& path, const json& record);

}  // namespace bcq

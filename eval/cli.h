// What the programs share: the command line, exit codes, progress on stderr, and facts about the run.
//
// Exit codes: 0 done; 1 the run failed; 2 wrong usage; 3 a model or data file is
// invalid; 4 finished, but some of the data was left out; 130 interrupted (the shell's own). Results go to stdout,
// everything else to stderr.
#pragma once
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/core/timer.h"
#include "engine/file/json_fwd.h"
#include "eval/run.h"

namespace bcq {

// Thrown by a program that has printed its results, but had to leave out some of its data.
struct Incomplete : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An option of a program: names, what follows ("FILE"; nothing for a flag), help.
struct Arg {
  const char *flags, *type;
  std::string help;
  const char* group = "Options";
  bool required = false;
};

// A program's command line. Values are checked where they are read: UsageError names the option.
class CommandLine {
 public:
  CommandLine(const std::string& name, const std::string& description, const std::string& examples);
  ~CommandLine();
  void add(const Arg& arg, std::string& to);
  void add(const Arg& arg, std::vector<std::string>& to);  // any number of times, of any number
  void add(const Arg& arg, bool& to);
  void add(const Arg& arg, int64_t& to, double min, double max);
  void add(const Arg& arg, double& to, double min, double max);
  // --model, required: a folder with these.
  void add_model(std::string& to, const char* files = "config.json and weights");
  // A file that is written in the end ("-": stdout): refused before the work where it cannot be.
  void add_output(const Arg& arg, std::string& to);
  // The options of the recipe table, --recipe and --print-recipe. With `of_cells` those alone that hold for all cells
  // of a table. `to` is read when the rest has been.
  void add_recipe(Recipe& to, bool of_cells = false);
  // With several ranks (engine/core/ranks.h) the work of this program is shared out; others refuse to run so.
  void share_work();
  const json& given() const;  // options of the recipe on the command line, by key
  // Whether the command line itself has the option ("--bc-sites").
  bool has(const std::string& flag) const;
  // Parse and run body(); turns every error into a message and an exit code.
  int run(int argc, char** argv, const std::function<void()>& body);

 private:
  struct Parser;
  void parse(int argc, char** argv);
  std::unique_ptr<Parser> parser_;
};

// UsageError or Error where nothing can be written into a folder, which is made if it is not there.
void make_folder(const std::string& folder);

// Shows work on stderr with the time left, on a terminal: one line that is rewritten. Elsewhere, and with --quiet,
// nothing; warnings are shown without --quiet.
class ProgressLine {
 public:
  static bool quiet;
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
  void warning(const std::string& message);
  std::string prefix_, what_;
  Timer start_, last_;  // since the work began; since it was last shown
  bool open_ = false;
  std::vector<std::string> warnings_;
};

// The members every record has: tool, version, threads, isa, blas, peak_rss_mb; with several ranks "ranks", their count
// and the MB the first one received.
json run_facts();
// Write records as JSON to `path` ("-": stdout); nothing when path is empty, and of ranks but the first.
void write_record(const std::string& path, const json& record);

// Warns that data to calibrate on are given to a method that needs none; nothing where `path` is empty. Scripts go
// through methods with one command line, so it is no error; InputError when they are not there.
void warn_of_unread(const std::string& path, const std::string& method, const Warn& warn);

}  // namespace bcq

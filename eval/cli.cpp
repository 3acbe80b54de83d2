#include "eval/cli.h"

#include <cblas.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <new>

#include "data/image/jpeg.h"
#include "engine/core/parallel.h"
#include "engine/core/process.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

std::string clock_text(double seconds) {
  const int s = static_cast<int>(seconds + 0.5);
  return s < 3600 ? format("%d:%02d", s / 60, s % 60) : format("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

// An OpenBLAS that is older than the processor falls back to kernels of 2005, several times slower.
void hint_at_slow_blas() {
  const std::string blas = openblas_get_corename(), isa = kernels().name;
  const bool old = blas == "Prescott" || blas == "Core2" || blas == "Penryn" || blas == "Nehalem" || blas == "Unknown";
  if (!old || isa == "plain") return;
  print(stderr,
        "note: OpenBLAS does not know this processor and runs its slow %s kernels; OPENBLAS_CORETYPE=%s is faster\n",
        blas, isa == "avx512" ? "SkylakeX" : "Haswell");
}

std::string full_version() {
  return format("bcq %s\ncompiler %s\nisa %s\nblas %s (%s)\njpeg %s", version(), __VERSION__, kernels().name,
                openblas_get_config(), openblas_get_corename(), jpeg_decoder());
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<void()>& body) {
  tune_process();
  // A function, because naming the kernels may itself fail (BCQ_ISA).
  app.add_flag_function(
         "--version", [](int64_t) { throw CLI::CallForVersion(full_version(), 0); },
         "Version, compiler, kernels, BLAS, JPEG decoder")
      ->trigger_on_parse();
  app.get_formatter()->column_width(34);
  const std::string name = app.get_name();
  auto failed = [&](int code, const char* message) {
    print(stderr, "%s: %s\n", name, message);
    return code;
  };
  try {
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      return app.exit(e) == 0 ? 0 : 2;
    }
    hint_at_slow_blas();
    body();
    require(std::cout.flush().good() && std::fflush(stdout) == 0, "cannot write to standard output");
    return 0;
  } catch (const UsageError& e) {
    return failed(2, (std::string(e.what()) + " (see --help)").c_str());
  } catch (const InputError& e) {
    return failed(3, e.what());
  } catch (const Incomplete& e) {
    return failed(4, e.what());
  } catch (const std::bad_alloc&) {
    return failed(1, "out of memory");
  } catch (const std::exception& e) {
    return failed(1, e.what());
  }
}

void add_threads_option(CLI::App& app) {
  app.add_option_function<int>("--threads", set_threads, "Threads (default: all cores); results do not depend on it")
      ->type_name("T");
}

void ProgressLine::operator()(const std::string& what, double done, double total) {
  const auto now = Clock::now();
  if (!open_ || what != what_) {
    finish();
    what_ = what;
    start_ = last_ = now;
    open_ = true;
  }
  const bool terminal = isatty(2);
  const double since = std::chrono::duration<double>(now - last_).count();
  if (since < (terminal ? 0.1 : 10.0)) return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const bool known = done >= 0.01 * total && done > 0;  // the first per cent says little of the rest
  const double left = known ? elapsed * (total - done) / done : 0;
  print(stderr, "%s%s%s: %.0f%%, %s left%s", terminal ? "\r\x1b[K" : "", prefix_, what,
        total > 0 ? 100 * done / total : 0.0, known ? clock_text(left).c_str() : "?", terminal ? "" : "\n");
}

void ProgressLine::finish() {
  if (open_ && isatty(2)) print(stderr, "\r\x1b[K");
  open_ = false;
}

void ProgressLine::warning(const std::string& message) {
  if (std::find(warnings_.begin(), warnings_.end(), message) != warnings_.end()) return;
  finish();
  print(stderr, "%swarning: %s\n", prefix_, message);
  warnings_.push_back(message);
}

json run_facts() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return {{"tool", "bcq"},
          {"version", version()},
          {"threads", threads()},
          {"isa", kernels().name},
          {"blas", std::string("OpenBLAS ") + openblas_get_corename()},
          {"peak_rss_mb", static_cast<double>(usage.ru_maxrss) / 1024}};
}

void write_record(const std::string& path, const json& record) {
  if (path.empty()) return;
  if (path == "-")
    std::cout << record.dump(2) << "\n";
  else
    write_file(path, record.dump(2) + "\n");
}

}  // namespace bcq

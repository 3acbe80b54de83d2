// Runs the tests. The last line of the output is "N passed, N failed" (test cases),
// the exit code is doctest's: 0 when nothing failed.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "engine/core/format.h"
#include "engine/core/process.h"

namespace {

unsigned started = 0, failed = 0;
bool has_run = false;

struct Counter : doctest::IReporter {
  explicit Counter(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& stats) override {
    failed = stats.numTestCasesFailed;
    has_run = true;
  }
  void test_case_start(const doctest::TestCaseData&) override { ++started; }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("counter", 1, Counter);

}  // namespace

int main(int argc, char** argv) {
  bcq::tune_process(argv);
  doctest::Context context(argc, argv);
  const int code = context.run();
  if (has_run) {
    std::fflush(stdout);
    bcq::print("%d passed, %d failed\n", started - failed, failed);
  }
  return code;
}

// Folders that take a name when they are whole.
#include <doctest/doctest.h>

#include <atomic>
#include <barrier>
#include <filesystem>
#include <thread>
#include <vector>

#include "engine/core/check.h"
#include "engine/file/file.h"
#include "engine/file/new_folder.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

TEST_CASE("new folder: of several that take one name at once each does, and the last one stays, whole") {
  const Folder folder;
  const fs::path final_path = folder.file("saved");
  constexpr int kRounds = 60, kThreads = 3;
  std::barrier round(kThreads);
  std::atomic<int> failures = 0, partial = 0;
  const auto work = [&](int thread) {
    for (int i = 0; i < kRounds; ++i) {
      {
        NewFolder made(final_path);
        for (const char* name : {"a", "b"}) write_file((made.path() / name).string(), std::to_string(thread));
        round.arrive_and_wait();
        try {
          made.commit();
        } catch (const Error&) {
          ++failures;
        }
      }
      round.arrive_and_wait();
      if (thread == 0) {
        const std::string a = read_file((final_path / "a").string()), b = read_file((final_path / "b").string());
        const auto entries = std::distance(fs::directory_iterator(folder.path), fs::directory_iterator());
        if (a != b || a.size() != 1 || entries != 1) ++partial;
        fs::remove_all(final_path);
      }
      round.arrive_and_wait();
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(work, t);
  for (std::thread& thread : threads) thread.join();
  CHECK(failures.load() == 0);
  CHECK(partial.load() == 0);
}

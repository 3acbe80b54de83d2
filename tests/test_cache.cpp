// Values kept in files: made once, never believed when damaged, never another key's.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "data/image/cache.h"
#include "engine/core/check.h"
#include "tests/support.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) paths.push_back(entry.path().string());
  return paths;
}

TEST_CASE("cache: a value is made once per key, and every time without a folder") {
  const test::Folder folder;
  int made = 0;
  const auto get = [&](const std::string& where, const std::string& key) {
    return cached(where, key, [&] { return ++made, "value of " + key + std::string(1, '\0') + "end"; });
  };
  const std::string want = std::string("value of a") + '\0' + "end";
  CHECK(get(folder.path, "a") == want);
  CHECK(get(folder.path, "a") == want);
  CHECK(made == 1);
  CHECK(get(folder.path, "b") != want);
  CHECK(made == 2);
  CHECK(files_in(folder.path).size() == 2);
  get("", "a");
  get("", "a");
  CHECK(made == 4);
  CHECK(cached(folder.path, "empty", [] { return ""; }).empty());
  CHECK(cached(folder.path, "empty", [] { return "made again"; }).empty());
}

TEST_CASE("cache: a truncated, damaged or exchanged entry is made again") {
  const test::Folder folder;
  const std::string value = "0123456789abcdef!";
  int made = 0;
  const auto get = [&] { return cached(folder.path, "key", [&] { return ++made, value; }); };
  get();
  const std::string path = files_in(folder.path).at(0), whole = test::read_text(path);
  for (size_t n = 0; n < whole.size(); ++n) {
    CAPTURE(n);
    made = 0;
    test::write_text(path, whole.substr(0, n));
    CHECK(get() == value);
    std::string flipped = whole;
    flipped[n] = static_cast<char>(flipped[n] ^ 4);
    test::write_text(path, flipped);
    CHECK(get() == value);
    CHECK(made == 2);
    CHECK(test::read_text(path) == whole);  // and is whole again
  }
  made = 0;
  test::write_text(path, whole + "x");
  CHECK(get() == value);
  cached(folder.path, "other", [] { return "of another key"; });
  for (const std::string& other : files_in(folder.path))
    if (other != path) fs::copy_file(other, path, fs::copy_options::overwrite_existing);
  CHECK(get() == value);
  CHECK(made == 2);
}

TEST_CASE("cache: a sound entry that the caller cannot use is made again") {
  const test::Folder folder;
  int made = 0;
  const auto get = [&](const std::string& value, size_t size) {
    return cached(
        folder.path, "key", [&] { return ++made, value; }, [&](const std::string& v) { return v.size() == size; });
  };
  CHECK(get("short", 12) == "short");
  CHECK(get("long enough.", 12) == "long enough.");
  CHECK(get("unused", 12) == "long enough.");
  CHECK(get("more", 4) == "more");
  CHECK(made == 3);
}

TEST_CASE("cache: processes that keep the same values at the same time all get them") {
  const test::Folder folder;
  std::vector<pid_t> children;
  for (int i = 0; i < 6; ++i) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    bool sound = true;
    for (int k = 0; k < 40; ++k) {
      const std::string value(1000, static_cast<char>('a' + k % 26));
      sound = sound && cached(folder.path, format("key %d", k), [&] { return value; }) == value;
    }
    _exit(sound ? 0 : 1);
  }
  for (const pid_t child : children) {
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
  }
  CHECK(files_in(folder.path).size() == 40);  // and no temporary file is left
}

TEST_CASE("cache: nothing is left behind when making fails; a folder that cannot be made is named") {
  const test::Folder folder;
  CHECK_THROWS_AS(cached(folder.path, "key", []() -> std::string { throw InputError("no"); }), InputError);
  CHECK(files_in(folder.path).empty());
  test::write_text(folder.file("file"), "");
  const auto get = [&] { cached(folder.file("file"), "key", [] { return "v"; }); };
  CHECK(test::contains(test::message_of<Error>(get), "file"));
}

}  // namespace
}  // namespace bcq

// Where output goes: links, devices, pipes, standard output, files that can only be written in place; and what is found
// out before the work. Rights are tried in a child process that is nobody, for the tests may run as root.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <thread>

#include "engine/core/check.h"
#include "engine/file/file.h"
#include "engine/file/safetensors.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

namespace {

size_t files_in(const std::string& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator{}));
}

// The message of an exception in a child process without root's rights; "" when there is none.
std::string as_nobody(const std::function<void()>& f) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::string message;
    if (::geteuid() == 0 && ::setuid(65534) != 0) message = "setuid";
    try {
      if (message.empty()) f();
    } catch (const std::exception& e) {
      message = e.what();
    }
    (void)!::write(ends[1], message.data(), message.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string message;
  char buffer[500];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) message.append(buffer, static_cast<size_t>(n));
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  return message;
}

std::string probed(const std::string& path) {
  return message_of<UsageError>([&] { probe_output(path); });
}

}  // namespace

TEST_CASE("output: a link stays, and what it points to is replaced or made") {
  const Folder dir;
  fs::create_directory(dir.file("runs"));
  write_text(dir.file("runs/42.json"), "old");
  fs::create_symlink("runs/42.json", dir.file("latest.json"));
  fs::create_symlink("latest.json", dir.file("link.json"));
  fs::create_symlink("runs/43.json", dir.file("next.json"));
  fs::create_symlink(dir.file("runs"), dir.file("folder"));
  write_file(dir.file("link.json"), "new");
  CHECK(fs::is_symlink(dir.file("link.json")));
  CHECK(fs::is_symlink(dir.file("latest.json")));
  CHECK(read_file(dir.file("runs/42.json")) == "new");
  write_file(dir.file("next.json"), "first");
  CHECK(fs::is_symlink(dir.file("next.json")));
  CHECK(read_file(dir.file("runs/43.json")) == "first");
  write_file(dir.file("folder/44.json"), "x");
  CHECK(read_file(dir.file("runs/44.json")) == "x");
  CHECK(files_in(dir.file("runs")) == 3);
  fs::create_symlink("runs/model", dir.file("weights"));
  write_safetensors(dir.file("weights"), std::map<std::string, Tensor>{{"a", Tensor({2}, {1, 2})}});
  CHECK(SafeTensors::open(dir.file("runs/model")).get("a")[1] == 2);
  fs::create_symlink("circle", dir.file("circle"));
  CHECK(contains(message_of<Error>([&] { write_file(dir.file("circle"), "x"); }), "cannot be written"));
}

TEST_CASE("output: a file keeps its rights, and a short name is no condition") {
  const Folder dir;
  write_text(dir.file("secret"), "old");
  REQUIRE(::chmod(dir.file("secret").c_str(), 0600) == 0);
  write_file(dir.file("secret"), "new");
  struct stat status = {};
  REQUIRE(::stat(dir.file("secret").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  const std::string longest = dir.file(std::string(255, 'n'));
  write_file(longest, "x");
  CHECK(read_file(longest) == "x");
  CHECK(files_in(dir.path) == 2);
}

TEST_CASE("output: devices and pipes are written, not replaced") {
  const Folder dir;
  write_file("/dev/null", "x");
  CHECK(fs::is_character_file("/dev/null"));
  CHECK_THROWS_AS(write_file("/dev/full", "x"), Error);
  const std::string pipe = dir.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0666) == 0);
  std::string read;
  std::thread reader([&] { read = read_file(pipe); });
  write_file(pipe, std::string(200000, 'y'));
  reader.join();
  CHECK(read == std::string(200000, 'y'));
  CHECK(fs::is_fifo(pipe));
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  write_file(format("/dev/fd/%d", ends[1]), "through a descriptor");  // as >(...) of a shell
  char buffer[100];
  CHECK(std::string(buffer, static_cast<size_t>(::read(ends[0], buffer, sizeof buffer))) == "through a descriptor");
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("output: standard output that goes to a file is continued") {
  const Folder dir;
  const std::string out = dir.file("out.txt");
  fs::create_symlink("/proc/self/fd/1", dir.file("stdout"));
  for (const std::string& name : {std::string("/dev/stdout"), dir.file("stdout"), out}) {
    CAPTURE(name);
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
      const int fd = ::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
      ::dup2(fd, 1);
      std::printf("before\n");
      try {
        write_file(name, "{}\n");
      } catch (const std::exception& e) {
        std::printf("%s\n", e.what());
      }
      std::printf("after\n");
      std::fflush(stdout);
      ::_exit(0);
    }
    ::waitpid(child, nullptr, 0);
    CHECK(read_file(out) == "before\n{}\nafter\n");
  }
}

TEST_CASE("output: a file that may be written in a folder that may not is written in place") {
  const Folder dir;
  fs::create_directory(dir.file("fixed"));
  const std::string path = dir.file("fixed/r.json");
  write_text(path, "a long text that was there before");
  REQUIRE(::chmod(dir.path.c_str(), 0755) == 0);
  REQUIRE(::chmod(path.c_str(), 0666) == 0);
  REQUIRE(::chmod(dir.file("fixed").c_str(), 0555) == 0);
  CHECK(as_nobody([&] { probe_output(path); }) == "");
  CHECK(as_nobody([&] { write_file(path, "new"); }) == "");
  CHECK(read_file(path) == "new");
  CHECK(contains(as_nobody([&] { write_file(dir.file("fixed/other.json"), "new"); }), "cannot be written"));
  CHECK(contains(as_nobody([&] { probe_output(dir.file("fixed/other.json")); }), "cannot be written"));
  REQUIRE(::chmod(path.c_str(), 0444) == 0);
  CHECK(contains(as_nobody([&] { probe_output(path); }), "cannot be written"));
  CHECK(contains(as_nobody([&] { write_file(path, "newer"); }), "cannot be written"));
  CHECK(read_file(path) == "new");
  REQUIRE(::chmod(dir.file("fixed").c_str(), 0755) == 0);
}

TEST_CASE("output: a file that something is mounted on is written in place") {
  const Folder dir;
  write_text(dir.file("host.json"), "");
  write_text(dir.file("mounted.json"), "");
  if (::mount(dir.file("host.json").c_str(), dir.file("mounted.json").c_str(), nullptr, MS_BIND, nullptr) != 0) {
    MESSAGE("skipped: nothing can be mounted here");
    return;
  }
  probe_output(dir.file("mounted.json"));
  CHECK_NOTHROW(write_file(dir.file("mounted.json"), "written"));
  CHECK(::umount(dir.file("mounted.json").c_str()) == 0);
  CHECK(read_file(dir.file("host.json")) == "written");
  CHECK(files_in(dir.path) == 2);
}

TEST_CASE("output: what cannot be written is found before the work") {
  const Folder dir;
  write_text(dir.file("file"), "kept");
  fs::create_symlink("nowhere/x.json", dir.file("dangling"));
  CHECK(contains(probed(dir.file("missing/x.json")), "there is no folder"));
  CHECK(contains(probed(dir.file("file/x.json")), "is not a folder"));
  CHECK(contains(probed(dir.path), "it is a folder"));
  CHECK(contains(probed(dir.file("dangling")), "there is no folder"));
  CHECK(contains(probed("/proc/nothing.json"), "cannot be written"));
  for (const std::string& fine :
       {std::string(), std::string("-"), std::string("/dev/null"), dir.file("new.json"), dir.file("file")})
    CHECK(probed(fine) == "");
  CHECK(read_file(dir.file("file")) == "kept");
  CHECK(files_in(dir.path) == 2);
}

TEST_CASE("output: temporary names do not repeat, whoever asks") {
  const std::string a = temporary_name("w/x.json"), b = temporary_name("w/x.json");
  CHECK(a != b);
  CHECK(fs::path(a).parent_path() == "w");
  CHECK(fs::path(temporary_name("x.json")).parent_path() == ".");
  CHECK(as_nobody([&] { throw Error(temporary_name("w/x")); }) !=
        as_nobody([&] { throw Error(temporary_name("w/x")); }));
}

TEST_CASE("safetensors: metadata that is not UTF-8 is written with what stands for it") {
  const Folder dir;
  write_safetensors(dir.file("a"), std::map<std::string, Tensor>{{"t", Tensor({1}, {1})}}, {{"path", "caf\xe9/x"}});
  CHECK(SafeTensors::open(dir.file("a")).metadata().at("path") == "caf\xef\xbf\xbd/x");
}

// Indices of tar archives against what GNU tar packs, in its four formats, and damaged archives.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "data/image/tar.h"
#include "engine/core/check.h"
#include "tests/support.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;

void shell(const std::string& command) {
  CAPTURE(command);
  REQUIRE(std::system(command.c_str()) == 0);
}

void put(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  test::write_text(path, text);
}

std::string octal(size_t n) { return n < 8 ? std::string(1, static_cast<char>('0' + n)) : octal(n / 8) + octal(n % 8); }

// A header block as POSIX.1 has it; `size` is put as given, the checksum is right.
std::string header(const std::string& name, const std::string& size, char type) {
  std::string h(512, '\0');
  h.replace(0, name.size(), name);
  h.replace(124, size.size(), size);
  h[156] = type;
  h.replace(257, 8, std::string("ustar\00000", 8));
  h.replace(148, 8, "        ");
  int sum = 0;
  for (const char c : h) sum += static_cast<unsigned char>(c);
  h.replace(148, 8, format("%6s", octal(static_cast<size_t>(sum))) + std::string("\0 ", 2));
  return h;
}
std::string blocks(const std::string& data) { return data + std::string((512 - data.size() % 512) % 512, '\0'); }
const std::string kEnd(1024, '\0');

std::string refusal(const test::Folder& folder, const std::string& bytes) {
  test::write_text(folder.file("bad.tar"), bytes);
  return test::message_of<InputError>([&] { list_tar(folder.file("bad.tar")); });
}

TEST_CASE("tar: every format GNU tar writes lists the files with their bytes") {
  const test::Folder folder;
  const std::string deep = std::string(80, 'd') + "/" + std::string(80, 'e');
  std::map<std::string, std::string> files{
      {"a.txt", "one"}, {"empty", ""}, {"sub/b", std::string(512, 'x')}, {"sub/c", std::string(513, 'y')}};
  for (const auto& [name, text] : files) put(folder.file("in/" + name), text);
  for (const std::string format : {"v7", "ustar", "gnu", "pax"}) {
    CAPTURE(format);
    if (format != "v7") put(folder.file("in/" + deep + "/long"), files[deep + "/long"] = "long");
    if (format == "gnu" || format == "pax") {
      const std::string name = std::string(140, 'n') + "\xc3\xa9";
      put(folder.file("in/" + name), files[name] = "longer");
    }
    const std::string archive = folder.file(format + ".tar");
    shell("tar --format=" + format + " -cf " + archive + " -C " + folder.file("in") + " .");
    std::map<std::string, std::string> found;
    for (const TarMember& m : list_tar(archive))
      if (m.type == '0')
        found[m.name] = read_range(archive, m.offset, m.size);
      else
        CHECK(m.type == '5');
    CHECK(found == files);
  }
}

TEST_CASE("tar: sizes in base 256 and in pax headers, and pax paths that hold spaces and equals signs") {
  const test::Folder folder;
  const std::string path = folder.file("a.tar");
  const std::string base256("\x80\0\0\0\0\0\0\0\0\0\0\3", 12);
  test::write_text(path, header("one", base256, '0') + blocks("abc") + header("x", "45", 'x') +
                             blocks("20 path=a b=c/d e=f\n9 size=4\n8 a=b=c\n") + header("two", "0", '0') +
                             blocks("defg") + header("three", "1 ", '0') + blocks("h") + kEnd);
  const auto members = list_tar(path);
  REQUIRE(members.size() == 3);
  CHECK(read_range(path, members[0].offset, members[0].size) == "abc");
  CHECK(members[1].name == "a b=c/d e=f");
  CHECK(read_range(path, members[1].offset, members[1].size) == "defg");
  CHECK(members[2].name == "three");  // what a pax header says holds for one member
  CHECK(members[2].size == 1);
}

TEST_CASE("tar: an archive inside an archive is listed in place") {
  const test::Folder folder;
  put(folder.file("in/x.txt"), "inner");
  shell("cd " + folder.path + " && tar -cf inner.tar -C in x.txt && tar -cf outer.tar --format=ustar inner.tar");
  const auto outer = list_tar(folder.file("outer.tar"));
  REQUIRE(outer.size() == 1);
  const auto inner = list_tar(folder.file("outer.tar"), outer[0].offset, outer[0].size);
  REQUIRE(inner.size() == 1);
  CHECK(inner[0].name == "x.txt");
  CHECK(read_range(folder.file("outer.tar"), inner[0].offset, inner[0].size) == "inner");
}

TEST_CASE("tar: truncated at any block, damaged or not a tar archive") {
  const test::Folder folder;
  const std::string whole =
      header("a", "00000002000", '0') + std::string(1024, 'a') + header("b", "00000000001", '0') + blocks("b") + kEnd;
  CHECK(refusal(folder, whole).empty());
  for (const size_t n : {size_t{0}, size_t{100}, size_t{512}, size_t{1024}, size_t{1536}, size_t{2000}, size_t{2048},
                         size_t{2049}, size_t{2560}}) {
    CAPTURE(n);
    const std::string message = refusal(folder, whole.substr(0, n));
    CHECK(test::contains(message, "bad.tar"));
    CHECK(test::contains(message, "truncated"));
  }
  std::string damaged = whole;
  damaged[1536 + 3] = 'z';  // the second header
  CHECK(test::contains(refusal(folder, damaged), "no member's header at byte 1536"));
  CHECK(test::contains(refusal(folder, std::string(2048, 'p')), "not a tar archive"));
  CHECK(test::contains(refusal(folder, "\x1f\x8b" + std::string(2048, 'p')), "gunzip"));
  CHECK(test::contains(refusal(folder, header("a", "77777777777", '0') + kEnd), "truncated"));
  CHECK(test::contains(refusal(folder, header("a", std::string(12, '\xff'), '0') + kEnd), "bad.tar"));
  CHECK(test::contains(refusal(folder, header("a", "9", '0') + kEnd), "not a tar archive"));
  CHECK(test::contains(refusal(folder, header("a", "7", 'x') + blocks("99 a=b\n") + kEnd), "pax"));
  CHECK(test::contains(refusal(folder, header("a", "7", 'x') + blocks("no tune") + kEnd), "pax"));
  CHECK(test::contains(refusal(folder, header("a", "0", 'S') + kEnd), "unpack"));
  CHECK_THROWS_AS(list_tar(folder.path), InputError);
  CHECK_THROWS_AS(list_tar(folder.file("nowhere")), InputError);
  CHECK_THROWS_AS(read_range(folder.file("bad.tar"), 1000, 4000), InputError);
}

TEST_CASE("tar: a path with a zero byte in a pax header is damage") {
  const test::Folder folder;
  const auto archive = [](const std::string& records) {
    return header("x", octal(records.size()), 'x') + blocks(records) + header("a", "1", '0') + blocks("a") + kEnd;
  };
  CHECK(refusal(folder, archive("14 path=a.png\n")).empty());
  for (const std::string& records :
       {std::string("15 path=a.png\0\n", 15), std::string("17 path=a.png\0\0b\n", 17), std::string("11 path=\0a\n", 11),
        std::string("14 path=b.png\n12 path=a\0b\n", 26)})
    CHECK(test::contains(refusal(folder, archive(records)), "pax header at byte 512"));
  CHECK(refusal(folder, archive(std::string("15 comment=a\0b\n", 15))).empty());  // means nothing here
}

TEST_CASE("tar: an archive inside another ends where that says, also when it is empty") {
  const test::Folder folder;
  const std::string path = folder.file("outer.tar");
  test::write_text(path, header("in.tar", "0", '0') + header("a", "1", '0') + blocks("a") + kEnd);
  const auto inner = list_tar(path).at(0);
  CHECK(inner.size == 0);
  const auto refused = [&](uint64_t begin, uint64_t size) {
    return test::message_of<InputError>([&] { list_tar(path, begin, size); });
  };
  CHECK(test::contains(refused(inner.offset, inner.size), "truncated"));
  CHECK(test::contains(refused(512, 1 << 20), "truncated"));
  CHECK(test::contains(refused(1 << 20, 1), "truncated"));
  CHECK(test::contains(refused(512, ~uint64_t{0} - 100), "truncated"));  // the end would wrap around
  const auto range = [&](uint64_t offset, uint64_t size) {
    return test::message_of<InputError>([&] { read_range(path, offset, size); });
  };
  CHECK(range(0, 512).empty());
  for (const auto& [offset, size] :
       {std::pair{uint64_t{0}, ~uint64_t{0}}, {uint64_t{1} << 40, uint64_t{1}}, {uint64_t{512}, uint64_t{1} << 50}})
    CHECK(test::contains(range(offset, size), "outer.tar"));
}

}  // namespace
}  // namespace bcq

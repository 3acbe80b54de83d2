// Tar archives read in place: where each member's bytes are, without unpacking anything.
//
// Understands what GNU tar and bsdtar write: v7, ustar, GNU long names, pax headers (path, size), sizes beyond 8 GiB.
// An archive inside an archive is a range of the outer one's bytes, so it is listed in place, too.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bcq {

struct TarMember {
  std::string name;  // path inside the archive, without "./", "/" or doubled slashes at the start or in between
  char type = '0';   // '0' regular file, '5' folder; anything else as in the header ('1' hard link, '2' link, ...)
  uint64_t offset = 0, size = 0;  // its bytes, counted from the start of the outermost file
};

constexpr uint64_t kToEnd = ~uint64_t{0};  // the size of what goes on to the end of the file

// Members of the archive in bytes [begin, begin + size) of the file, in the order they lie there; a name may come
// twice, and unpacking would keep the last. tick, if given, hears how far the reading is (an offset). InputError naming
// file and byte: not a tar archive, a damaged header, an archive that ends before its end-of-archive mark.
std::vector<TarMember> list_tar(const std::string& path, uint64_t begin = 0, uint64_t size = kToEnd,
                                const std::function<void(uint64_t)>& tick = nullptr);

// Bytes [offset, offset + size) of a file. InputError when it has fewer.
std::string read_range(const std::string& path, uint64_t offset, uint64_t size);

}  // namespace bcq

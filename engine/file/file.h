// Whole files read and written, and outputs tried before the work that fills them.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace bcq {

std::string read_file(const std::string& path);  // whole file; InputError when it cannot be read

// Write `pieces` one after the other to what `path` names. A link is followed, and what it points to replaced. A file
// is replaced whole or not at all: a temporary file beside it is renamed; where that cannot be (another file mounted
// on it, a folder that may not be written) it is written in place. Devices and pipes are written directly, and so is
// the file that standard output or standard error goes to, through those. Throws Error. `lasting`: on the disk before
// it is renamed, so that a crash of the machine leaves no empty file; not needed for what checks itself.
void write_file(const std::string& path, const std::string& text);
void write_file(const std::string& path, const std::vector<std::string_view>& pieces, bool lasting = true);

// To be called before the work whose result goes to the file `path` (""  or "-": nothing to try): UsageError when
// write_file() would fail (its folder is missing, no right, a folder is there). Leaves what is there as it is.
void probe_output(const std::string& path);

// A name beside `path` that nothing has, with random digits: programs in other containers have the same process ids.
// Whoever creates it does so exclusively, and asks for another name when it exists by then.
std::string temporary_name(const std::string& path);

}  // namespace bcq

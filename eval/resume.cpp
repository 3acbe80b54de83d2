#include "eval/resume.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "engine/file/packed_file.h"
#include "eval/save.h"
#include "models/stored.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;

// The numbers of a record, which must come back as they were: infinity and the last bit included.
constexpr std::pair<const char*, double LayerRecord::*> kNumbers[] = {{"damp", &LayerRecord::damp},
                                                                      {"ridge", &LayerRecord::ridge},
                                                                      {"signal", &LayerRecord::signal},
                                                                      {"rounded", &LayerRecord::rounded},
                                                                      {"solved", &LayerRecord::solved},
                                                                      {"refined", &LayerRecord::refined},
                                                                      {"compensated", &LayerRecord::compensated},
                                                                      {"held_out", &LayerRecord::held_out}};

json to_json(const PartRecord& record) {
  json layers = json::array();
  for (const LayerRecord& r : record.layers) {
    json layer = {{"site", r.layer}, {"bits", r.bits}, {"group", r.group}};
    for (const auto& [key, number] : kNumbers) layer[key] = format("%a", r.*number);
    layers.push_back(layer);
  }
  return {{"layers", layers}, {"fitted", record.fitted}, {"dropped", record.dropped}};
}

PartRecord from_json(const json& object, const std::string& where) {
  PartRecord record;
  for (const json& layer : get<json>(object, "layers", where)) {
    LayerRecord r;
    r.layer = get<std::string>(layer, "site", where);
    r.bits = get<int>(layer, "bits", where);
    r.group = get<int64_t>(layer, "group", where);
    for (const auto& [key, number] : kNumbers)
      r.*number = std::strtod(get<std::string>(layer, key, where).c_str(), nullptr);
    record.layers.push_back(r);
  }
  record.fitted = get<int64_t>(object, "fitted", where);
  record.dropped = get_or<int64_t>(object, "dropped", 0, where);
  return record;
}

// Files that hold no work: the lock, and what a process that was killed had not finished writing.
bool is_passing(const fs::path& file) {
  const std::string name = file.filename().string();
  return name == "lock" || name.rfind(".bcq-", 0) == 0;
}

// The lock is the kernel's, on a file that tells others who holds it: it ends with the process, however that ends.
int lock(const std::string& folder) {
  const std::string path = folder + "/lock";
  for (;;) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    require(fd >= 0, "%s: cannot be opened: %s", path, std::strerror(errno));
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      char holder[300] = {};
      const bool known = ::read(fd, holder, sizeof holder - 1) > 0;
      ::close(fd);
      throw UsageError(format("%s is in use by %s", folder, known ? holder : "another process"));
    }
    struct stat opened = {}, there = {};  // another one if its holder removed the folder meanwhile
    if (::fstat(fd, &opened) == 0 && ::stat(path.c_str(), &there) == 0 && opened.st_ino == there.st_ino) {
      char host[256] = {};
      ::gethostname(host, sizeof host - 1);
      const std::string holder = format("process %d on %s", ::getpid(), host);
      const bool ok = ::ftruncate(fd, 0) == 0 && ::write(fd, holder.data(), holder.size()) > 0;
      if (ok) return fd;
      const int error = errno;
      ::close(fd);
      throw Error(format("%s: cannot be written: %s", path, std::strerror(error)));
    }
    ::close(fd);
  }
}

}  // namespace

BlockFiles::BlockFiles(std::string folder, const json& fingerprint, bool resume) : folder_(std::move(folder)) {
  if (rank() == 0) open(fingerprint, resume);
  wait_for_ranks();
}

void BlockFiles::open(const json& fingerprint, bool resume) {
  const std::string run = folder_ + "/run.json";
  require_usage(::mkdir(folder_.c_str(), 0777) == 0 || (errno == EEXIST && fs::is_directory(folder_)),
                "%s: cannot be created: %s", folder_, std::strerror(errno));
  lock_ = lock(folder_);
  try {
    if (!fs::exists(run)) {  // new, or of a run that was killed before it began
      for (const auto& entry : fs::directory_iterator(folder_))
        require_usage(is_passing(entry.path()), "%s is where blocks are kept, and has something else in it: %s",
                      folder_, entry.path().filename());
      write_file(run, dump(fingerprint, 2) + "\n");
      return;
    }
    require_usage(resume, "%s holds the blocks of an interrupted run: continue it with --resume, or remove the folder",
                  folder_);
    const json found = read_json(run);
    require_input(found.is_object(), "%s: is not a JSON object: remove the folder to start anew", run);
    for (const auto& [key, value] : fingerprint.items())
      require_usage(found.contains(key) && found[key] == value,
                    "%s holds the blocks of another run, with %s %s instead of %s: remove it to start anew", folder_,
                    key, found.value(key, json()).dump(), value.dump());
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

BlockFiles::~BlockFiles() {
  if (lock_ < 0) return;
  bool has_blocks = false;
  std::error_code failed;
  for (fs::directory_iterator file(folder_, failed), end; !failed && file != end; file.increment(failed))
    has_blocks |= file->path().extension() == ".safetensors";
  if (!has_blocks) remove();  // a run that failed before its first block has nothing to go on from
  ::close(lock_);
}

std::string BlockFiles::path(const std::string& walk, int i) const {
  std::string name = walk;
  for (char& c : name)
    if (c == ' ' || c == '/') c = '-';
  return folder_ + "/" + name + format("-%04d.safetensors", i);
}

bool BlockFiles::has(const std::string& walk, int i) const { return fs::exists(path(walk, i)); }

bool BlockFiles::load(const std::string& walk, Model& model, int i, PartRecord& record) {
  if (!has(walk, i)) return false;
  const std::string where = path(walk, i);
  const SafeTensors file = SafeTensors::open(where);
  require_input(file.metadata().count("block") != 0, "%s: is not a block of a run: its metadata has no \"block\"",
                where);
  const json about = parse_json(file.metadata().at("block"), where);
  PackedFormat format;
  format.where = where;
  const auto warnings = get_or<std::vector<std::string>>(about, "warnings", {}, where);
  const auto loader = [&] { return Loader(file, nullptr, std::make_shared<const PackedFormat>(format)); };
  if (model.info().family == Family::Vision) {
    format.kind = PackedFormat::Kind::Grids;
    format.grids = std::make_shared<const json>(get<json>(about, "grids", where));
    require_input(get<json>(*format.grids, "layers", where).is_object(), "%s: \"layers\" is no object", where);
    get_part(model, i, loader());
  } else {
    format.by_layer = true;
    format.group = get<int64_t>(about, "group", where);
    format.positions = get<int64_t>(about, "positions", where);
    get_block(model, i, loader());
  }
  record = from_json(about, where);
  for (const std::string& message : warnings) {
    if (std::find(warnings_.begin(), warnings_.end(), message) != warnings_.end()) continue;
    warnings_.push_back(message);
    if (warn_) warn_(message);
  }
  return true;
}

void BlockFiles::done(const std::string& walk, Model& model, int i, const PartRecord& record) {
  if (rank() > 0) return;
  std::map<std::string, TensorInfo> tensors;
  json about = to_json(record);
  about["warnings"] = warnings_;
  if (model.info().family == Family::Vision) {
    about["grids"] = put_part(model, i, tensors);
  } else {
    put_block(model, i, PackedFormat::Kind::Own, tensors);
    about["group"] = -1;
    about["positions"] = 0;
    for (const Layer* layer : model.layers(i))
      if (const BinaryPlanes* planes = layer->binarized())
        about["group"] = planes->block;
      else if (layer->packed() && layer->packed()->groups() > 1)
        about["group"] = layer->packed()->group();
    for (const auto& [name, tensor] : tensors)
      if (name.ends_with(".bc")) about["positions"] = tensor.shape[0];
  }
  write_safetensors(path(walk, i), tensors, {{"block", dump(about, 2) + "\n"}});
}

Warn BlockFiles::keeping(const Warn& to) {
  warn_ = to;
  return [this](const std::string& message) {
    warnings_.push_back(message);
    warn_(message);
  };
}

void BlockFiles::remove() {
  if (rank() > 0) return;
  std::error_code ignored;  // the blocks first: without them the rest is no obstacle to another run
  for (const auto& entry : fs::directory_iterator(folder_, ignored))
    if (entry.path().extension() == ".safetensors") fs::remove(entry.path(), ignored);
  fs::remove_all(folder_, ignored);
}

}  // namespace bcq

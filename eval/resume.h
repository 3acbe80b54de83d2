// Finished blocks of an interrupted run, kept in files so that the run can go on.
#pragma once
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "engine/file/json_fwd.h"
#include "quant/calibrate.h"

namespace bcq {

// A folder with one file for each finished block, and one that says what run they belong to.
class BlockFiles : public PartStore {
 public:
  // `fingerprint` tells runs apart: an object of all that decides about the result. With `resume`, blocks that are
  // there are used; UsageError, naming what differs, when they are another run's. Without, UsageError when there are
  // any, so that hours of work are not lost by leaving out an option. The folder is locked while this lives:
  // UsageError, naming the process and its machine, when another run holds it. Of several ranks the first one writes
  // and all read: the folder has to be on a file system they share.
  BlockFiles(std::string folder, const json& fingerprint, bool resume);
  BlockFiles(const BlockFiles&) = delete;
  ~BlockFiles() override;  // a folder without blocks goes

  bool has(const std::string& walk, int i) const override;
  bool load(const std::string& walk, Model& model, int i, PartRecord& record) override;
  void done(const std::string& walk, Model& model, int i, const PartRecord& record) override;
  void remove();  // the folder: the run is complete
  // A Warn that gives messages on to `to` and keeps them with the blocks that are done from then on; load() gives `to`
  // those that were kept.
  Warn keeping(const Warn& to);

 private:
  void open(const json& fingerprint, bool resume);
  std::string path(const std::string& walk, int i) const;
  std::string folder_;
  Warn warn_;
  std::vector<std::string> warnings_;
  int lock_ = -1;  // descriptor of a file in the folder that says who holds it
};

}  // namespace bcq

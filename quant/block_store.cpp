#include "quant/block_store.h"

namespace bcq {

int restore_blocks(BlockStore* store, const std::string& walk, Model& model, std::vector<BlockRecord>& records) {
  int i = 0;
  for (BlockRecord record; store && i < model.depth() && store->load(walk, model, i, record); ++i) {
    records.push_back(std::move(record));
    record = {};
  }
  return i;
}

}  // namespace bcq

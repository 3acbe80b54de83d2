// dump_ids DIR TEXT OUT: the ids of a text file under the tokenizer in DIR, written as
// little-endian int32. Called by tokenizer_parity.py.
#include <cstdio>
#include <fstream>

#include "data/corpus.h"
#include "engine/check.h"

int main(int argc, char** argv) {
  try {
    bcq::require_usage(argc == 4, "usage: dump_ids TOKENIZER_DIR TEXT OUT");
    const std::vector<int32_t> ids = bcq::Tokenizer::load(argv[1]).encode(bcq::read_text(argv[2]));
    std::ofstream out(argv[3], std::ios::binary);
    out.write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof ids[0]));
    bcq::require(static_cast<bool>(out.flush()), "%s: cannot write", argv[3]);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "dump_ids: %s\n", e.what());
    return 1;
  }
  return 0;
}

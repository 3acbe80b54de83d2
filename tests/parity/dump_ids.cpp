// dump_ids TOKENIZER_DIR TEXT OUT [L [COUNT SEED]]: token ids written as little-endian int32. TEXT is given as to
// `perplexity --text`. The ids that perplexity is measured on, with windows of L tokens; or COUNT calibration windows.
// Called by tokenizer_parity.py.
#include <cstdio>
#include <fstream>

#include "data/text/corpus.h"
#include "engine/core/check.h"

int main(int argc, char** argv) {
  using namespace bcq;
  try {
    require_usage(argc == 4 || argc == 5 || argc == 7, "usage: dump_ids TOKENIZER_DIR TEXT OUT [L [COUNT SEED]]");
    const Tokenizer tokenizer = Tokenizer::load(argv[1]);
    const bool calib = argc == 7;
    const TextSource source = text_source(argv[2], "", calib ? Split::Calibration : Split::Evaluation);
    const int64_t length = argc > 4 ? std::stoll(argv[4]) : 2048;
    const std::vector<int32_t> ids =
        calib ? calibration_windows(source, &tokenizer, length, std::stoll(argv[5]), std::stoll(argv[6])).ids
              : evaluation_ids(source, &tokenizer, length);
    std::ofstream out(argv[3], std::ios::binary);
    out.write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof ids[0]));
    require(static_cast<bool>(out.flush()), "%s: cannot write", argv[3]);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "dump_ids: %s\n", e.what());
    return 1;
  }
  return 0;
}

// Tokenizer files, corpora and token ids.
#include <zlib.h>

#include <filesystem>

#include "data/text/corpus.h"
#include "tests/fuzz/fuzz.h"

namespace bcq::fuzz {
namespace {

namespace fs = std::filesystem;
const std::string kTokenizers = "tests/fixtures/tokenizer/";
const std::vector<std::string> kFiles = {"tokenizer.json", "vocab.json",        "merges.txt",
                                         "config.json",    "added_tokens.json", "tokenizer_config.json"};

void run_tokenizer(const std::string& input) {
  const auto part = parts(input, kFiles.size() + 1);
  for (size_t i = 0; i < kFiles.size(); ++i) {
    if (part[i].empty())
      fs::remove(path_of("tokenizer/" + kFiles[i]));
    else
      put("tokenizer/" + kFiles[i], part[i]);
  }
  refused_or_read([&] {
    const Tokenizer tokenizer = Tokenizer::load(path_of("tokenizer"));
    const std::vector<int32_t> ids = tokenizer.encode(part.back());
    tokenizer.decode(ids);
    TextStream stream(tokenizer);
    for (const int32_t id : ids) stream.next(id);
    stream.finish();
  });
}

std::vector<std::string> tokenizer_seeds() {
  const std::string text = "Hello  world, caf\xc3\xa9 123<s> don't\n";
  const std::string base =
      R"({"added_tokens":[{"id":4,"content":"<s>","special":true,"lstrip":true}],"normalizer":{"type":"NFC"},)"
      R"("pre_tokenizer":PRE,"post_processor":{"type":"ByteLevel","trim_offsets":false},"decoder":{"type":"ByteLevel"},)"
      R"("model":{"type":"BPE","unk_token":null,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2,"\u0120":3,"<s>":4},)"
      R"("merges":["a b"]}})";
  std::vector<std::string> seeds;
  for (
      const char* pre :
      {R"({"type":"ByteLevel","add_prefix_space":true,"use_regex":true})",
       R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":" ?[^(\\s|[.,!?])]+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})",
       R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false}]})"}) {
    std::string json = base;
    json.replace(json.find("PRE"), 3, pre);
    seeds.push_back(joined({json, "", "", "", "", R"({"add_bos_token":false,"bos_token":"<s>"})", "ab  ab<s>ba a"}));
  }
  seeds.push_back(
      joined({"", R"({"a":0,"b":1,"ab":2,"</s>":3})", "#version: 0.2\na b\n", R"({"model_type":"opt"})", R"({"<x>":4})",
              R"({"added_tokens_decoder":{"4":{"content":"<x>","special":true}}})", "ab ab<x>"}));
  for (const char* name : {"added", "bloom", "plain", "llama2", "llama3", "metaspace_split"})
    seeds.push_back(joined({read_file(kTokenizers + name + "/tokenizer.json"), "", "", "", "", "", text}));
  return seeds;
}

std::string compressed(const std::string& bytes) {
  z_stream z = {};
  std::string out(bytes.size() + 200, '\0');
  if (deflateInit2(&z, 1, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY) != Z_OK) return out;
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  z.avail_in = static_cast<uInt>(bytes.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

// A corpus of each definition, compressed or not, cut into windows of four tokens.
void run_corpus(const std::string& whole) {
  static const Tokenizer tokenizer = Tokenizer::load(kTokenizers + "plain");
  std::string input = whole;
  const auto definition = static_cast<Definition>(choice(input, 7));
  const int form = choice(input, 6);
  const TextSource source{definition, put("corpus", form % 2 ? compressed(input) : input)};
  int64_t warnings = 0;
  const Warn warn = [&](const std::string&) { ++warnings; };
  refused_or_read([&] { perplexity_windows(evaluation_ids(source, &tokenizer, 4, warn), 4, "corpus"); });
  refused_or_read(
      [&] { calibration_windows(source, &tokenizer, 4, 2, 3, form < 3 ? Align::None : Align::Document, {2}, warn); });
}

std::vector<std::string> corpus_seeds() {
  const std::string text =
      " = Title = \n\nOne sentence , and another one .\r\nA third caf\xc3\xa9 .\n\nMore words here and there\n";
  std::string documents, ids("\2\0\0\0\1\0\0\0\3\0\0\0\1\0\0\0\4\0\0\0\5\0\0\0", 24);
  for (const char* t :
       {"first text of many words in it \\u00e9\\ud83d\\ude00", "second text \\ud800 \\n of some words more"})
    documents += std::string(R"({"text":")") + t + R"(","url":"x"})" + "\n";
  std::vector<std::string> seeds;
  for (char d = 0; d < 7; ++d)
    for (char form = 0; form < 6; ++form) {
      const std::string head = {d, form};
      if (d < 4) seeds.push_back(head + text);
      if (d == 4 || d == 5) seeds.push_back(head + documents);
      if (d == 6) seeds.push_back(head + (form < 2 ? ids : form < 4 ? "[1, 2, 3, 1, 4, 5, 6]" : "1 2 3 1 4 5 6 7\n"));
    }
  for (char d = 0; d < 7; ++d) seeds.push_back(std::string{d, 0} + compressed(d == 4 || d == 5 ? documents : text));
  return seeds;
}

const Harness kTokenizer("tokenizer", run_tokenizer, tokenizer_seeds);
const Harness kCorpus("corpus", run_corpus, corpus_seeds);

}  // namespace
}  // namespace bcq::fuzz

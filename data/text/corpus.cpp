// Definitions, windows and crops of texts; see corpus.h.
#include "data/text/corpus.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>

#include "data/random.h"
#include "engine/core/check.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kC4Windows = 256, kC4NewDocuments = 1100;
constexpr std::array kNames = {"plain", "wikitext2", "ptb", "ptb-new", "c4", "c4-new", "tokens"};

// The definition called `name`; false when there is none.
bool definition_called(const std::string& name, Definition& definition) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return false;
  definition = static_cast<Definition>(found - kNames.begin());
  return true;
}

Definition definition_by_name(const std::string& path) {
  const std::string name = fs::path(path).filename().string();
  for (const char* end : {".json", ".jsonl", ".json.gz", ".jsonl.gz"})
    if (name.ends_with(end)) return Definition::C4;
  if (name.starts_with("wiki") && (name.ends_with(".raw") || name.ends_with(".tokens"))) return Definition::Wikitext2;
  if (name.starts_with("ptb.") && name.ends_with(".txt")) return Definition::Ptb;
  return Definition::Plain;
}

// Names the official files have, the usual one first.
std::vector<std::string> official_files(Definition definition, Split split) {
  const bool calib = split == Split::Calibration;
  switch (definition) {
    case Definition::Wikitext2:
      return {calib ? "wiki.train.raw" : "wiki.test.raw"};
    case Definition::Ptb:
      return {calib ? "ptb.train.txt" : "ptb.valid.txt"};
    case Definition::PtbNew:
      return {calib ? "ptb.train.txt" : "ptb.test.txt"};
    case Definition::C4:
    case Definition::C4New: {
      const std::string name = calib ? "c4-train.00000-of-01024.json" : "c4-validation.00000-of-00008.json";
      return {name + ".gz", name};
    }
    default:
      return {};
  }
}

std::string join(const std::vector<std::string>& rows, const char* between) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i) text += between;
    text += rows[i];
  }
  return text;
}

// The text that WikiText-2's and PTB's loaders tokenize; for Plain the file.
std::string joined_text(const TextSource& source, const Warn& warn) {
  const std::string text = read_text(source.path, warn);
  if (source.definition == Definition::Plain) return text;
  std::vector<std::string> rows = python_lines(text);
  for (std::string& row : rows) {
    const std::string stripped = python_strip(row);
    if (source.definition != Definition::Wikitext2 || stripped.empty()) row = stripped;
  }
  return join(rows, source.definition == Definition::PtbNew ? " " : "\n\n");
}

bool has_documents(const TextSource& source) {
  return source.definition == Definition::C4 || source.definition == Definition::C4New;
}

// Windows of the tokens from random documents on: ids_from(i) gives `length` of them or more, or all that are left.
// crop: they begin at a random place of what ids_from(i) gives, never at the last possible one. (The reference stops
// with an error at a document of exactly `length` tokens; here it is passed over.) InputError when no document has so
// many.
Windows draw_documents(int64_t documents, int64_t length, int64_t count, int64_t seed, const std::string& where,
                       const std::function<std::vector<int32_t>(int64_t)>& ids_from, bool crop = false) {
  require_usage(length >= 1 && count >= 1, "%d windows of %d tokens", count, length);
  require_input(documents >= 2 || crop, "%s: the text is all one document: no window can begin with another", where);
  Windows out{{}, length, count};
  PythonRandom random(seed);
  std::vector<bool> is_short(static_cast<size_t>(documents));
  for (int64_t drawn = 0, left = documents; drawn < count;) {
    const int64_t i = random.randint(0, documents - 1);
    if (is_short[static_cast<size_t>(i)]) continue;
    const std::vector<int32_t> ids = ids_from(i);
    const int64_t last = std::ssize(ids) - length - (crop ? 1 : 0);  // where a window may begin
    if (last < 0) {
      is_short[static_cast<size_t>(i)] = true;
      require_input(--left > 0, "%s: none of the %d documents %s %d tokens", where, documents,
                    crop ? "has more than" : "is followed by", length);
      continue;
    }
    const auto first = ids.begin() + (crop ? random.randint(0, last) : 0);
    out.ids.insert(out.ids.end(), first, first + length);
    ++drawn;
  }
  return out;
}

Windows document_crops(const Documents& documents, const Tokenizer& tokenizer, int64_t length, int64_t count,
                       int64_t seed, const std::string& where) {
  const auto whole = [&](int64_t i) { return tokenizer.encode(documents.text(i)); };
  return draw_documents(documents.size(), length, count, seed, where, whole, true);
}

Windows windows_of_documents(const Documents& documents, const Tokenizer& tokenizer, int64_t length, int64_t count,
                             int64_t seed, const std::string& where) {
  return draw_documents(documents.size(), length, count, seed, where, [&](int64_t i) {
    std::vector<int32_t> ids;
    for (; i < documents.size() && static_cast<int64_t>(ids.size()) < length; ++i) {
      const std::vector<int32_t> next = tokenizer.encode(documents.text(i));
      ids.insert(ids.end(), next.begin(), next.end());
    }
    return ids;
  });
}

Windows windows_of_ids(const std::vector<int32_t>& ids, const std::vector<int32_t>& begins, int64_t length,
                       int64_t count, int64_t seed, const std::string& where) {
  std::vector<size_t> starts;
  for (size_t i = 0; i < ids.size(); ++i)
    if (i == 0 || std::find(begins.begin(), begins.end(), ids[i]) != begins.end()) starts.push_back(i);
  return draw_documents(static_cast<int64_t>(starts.size()), length, count, seed, where, [&](int64_t i) {
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(starts[static_cast<size_t>(i)]);
    return std::vector<int32_t>(first, first + std::min(ids.end() - first, static_cast<std::ptrdiff_t>(length)));
  });
}

// Documents after blank lines. A window is tokenized from its first byte on, with twice the tokens it needs: where the
// text was cut the last of them can be others.
Windows windows_of_text(const std::string& text, const Tokenizer& tokenizer, int64_t length, int64_t count,
                        int64_t seed, const std::string& where) {
  std::vector<size_t> starts;
  bool after_blank = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const bool blank = text.find_first_not_of(" \t\r", begin) >= end;
    if (!blank && after_blank) starts.push_back(begin);
    after_blank = blank;
    begin = end + 1;
  }
  return draw_documents(static_cast<int64_t>(starts.size()), length, count, seed, where, [&](int64_t i) {
    const size_t start = starts[static_cast<size_t>(i)];
    std::vector<int32_t> ids;
    for (size_t bytes = 8 * static_cast<size_t>(length);; bytes *= 2) {
      std::string part = text.substr(start, bytes);
      if (const int64_t cut = invalid_utf8(part); cut >= 0)
        part.resize(static_cast<size_t>(cut));  // within a character
      ids = tokenizer.encode(part);
      if (bytes >= text.size() - start || static_cast<int64_t>(ids.size()) >= 2 * length) return ids;
    }
  });
}

}  // namespace

const char* name_of(Definition definition) { return kNames[static_cast<size_t>(definition)]; }

std::string find_corpus(Definition definition, const std::string& corpora, Split split) {
  require_input(fs::is_directory(corpora), "%s: no such folder", corpora);
  for (const std::string& name : official_files(definition, split)) {
    std::string found;
    const auto options = fs::directory_options::skip_permission_denied;
    for (const auto& entry : fs::recursive_directory_iterator(corpora, options)) {
      if (entry.path().filename() != name || !entry.is_regular_file()) continue;
      require_input(found.empty(), "%s and %s are both there: name the one to use", found, entry.path());
      found = entry.path().string();
    }
    if (!found.empty()) return found;
  }
  return "";
}

TextSource text_source(const std::string& spec, const std::string& corpora, Split split) {
  TextSource source;
  const size_t equals = spec.find('=');
  if (equals != spec.npos && definition_called(spec.substr(0, equals), source.definition)) {
    source.path = spec.substr(equals + 1);
    return source;
  }
  const bool named = definition_called(spec, source.definition);
  const std::vector<std::string> files = named ? official_files(source.definition, split) : std::vector<std::string>();
  if (files.empty()) return {definition_by_name(spec), spec};
  require_usage(!corpora.empty(), "%s needs --corpora DIR to look for %s in; or name the file: %s=FILE", spec, files[0],
                spec);
  source.path = find_corpus(source.definition, corpora, split);
  require_input(!source.path.empty(), "%s: no %s below this folder; or name the file: %s=FILE", corpora, files[0],
                spec);
  return source;
}

std::vector<int32_t> evaluation_ids(const TextSource& source, const Tokenizer* tokenizer, int64_t length,
                                    const Warn& warn) {
  if (source.definition == Definition::Tokens) return read_tokens(source.path);
  require(tokenizer != nullptr, "%s: a text needs a tokenizer", source.path);
  if (!has_documents(source)) return tokenizer->encode(joined_text(source, warn));
  const Documents documents(source.path);
  std::vector<int32_t> ids;
  if (source.definition == Definition::C4) {
    ids = document_crops(documents, *tokenizer, length, kC4Windows, 0, source.path).ids;
  } else {
    std::vector<std::string> texts;
    for (int64_t i = 0; i < std::min(kC4NewDocuments, documents.size()); ++i) texts.push_back(documents.text(i));
    ids = tokenizer->encode(join(texts, " "));
    ids.resize(std::min(ids.size(), static_cast<size_t>(kC4Windows * length)));
  }
  documents.report(warn);
  return ids;
}

Windows calibration_windows(const TextSource& source, const Tokenizer* tokenizer, int64_t length, int64_t count,
                            int64_t seed, Align align, const std::vector<int32_t>& separators, const Warn& warn) {
  const std::string& where = source.path;
  if (has_documents(source) && tokenizer) {
    const Documents documents(where);
    const Windows windows = align == Align::None
                                ? document_crops(documents, *tokenizer, length, count, seed, where)
                                : windows_of_documents(documents, *tokenizer, length, count, seed, where);
    documents.report(warn);
    return windows;
  }
  if (align == Align::Document && source.definition != Definition::Tokens && separators.empty())
    return windows_of_text(joined_text(source, warn), *tokenizer, length, count, seed, where);
  const std::vector<int32_t> ids = evaluation_ids(source, tokenizer, length, warn);
  if (align == Align::None) return calibration_crops(ids, length, count, seed, where);
  std::vector<int32_t> begins = separators;
  if (begins.empty() && tokenizer && tokenizer->bos() >= 0) begins = {tokenizer->bos()};
  require_usage(!begins.empty(), "%s: windows of token ids begin where documents begin: say with which token", where);
  return windows_of_ids(ids, begins, length, count, seed, where);
}

std::string token_hash(const std::vector<int32_t>& ids) {
  uint64_t hash = 14695981039346656037ull;
  for (const int32_t id : ids)
    for (int byte = 0; byte < 4; ++byte)
      hash = (hash ^ (static_cast<uint32_t>(id) >> (8 * byte) & 255)) * 1099511628211ull;
  return format("%016x", hash);
}

Batch Windows::batch(int64_t begin, int64_t end) const {
  require(begin >= 0 && begin <= end && end <= count, "windows %d..%d of %d", begin, end, count);
  Batch out;
  out.ids.assign(ids.begin() + begin * length, ids.begin() + end * length);
  out.windows = end - begin;
  out.length = length;
  return out;
}

Windows perplexity_windows(const std::vector<int32_t>& ids, int64_t length, const std::string& where) {
  require_usage(length >= 2, "a window needs at least 2 tokens, got %d", length);
  const int64_t count = static_cast<int64_t>(ids.size()) / length;
  require_input(count >= 1, "%s: the text has %d tokens, one window needs %d", where, ids.size(), length);
  return {std::vector<int32_t>(ids.begin(), ids.begin() + count * length), length, count};
}

std::vector<int64_t> crop_starts(int64_t total, int64_t length, int64_t count, int64_t seed, const std::string& where) {
  require_usage(length >= 1 && count >= 1, "%d crops of %d tokens", count, length);
  require_input(total > length, "%s: the text has %d tokens, drawing crops of %d needs at least %d", where, total,
                length, length + 1);
  PythonRandom random(seed);
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < count; ++i) starts.push_back(random.randint(0, total - length - 1));
  return starts;
}

Windows calibration_crops(const std::vector<int32_t>& ids, int64_t length, int64_t count, int64_t seed,
                          const std::string& where) {
  Windows out{{}, length, count};
  for (const int64_t start : crop_starts(static_cast<int64_t>(ids.size()), length, count, seed, where)) {
    out.ids.insert(out.ids.end(), ids.begin() + start, ids.begin() + start + length);
  }
  return out;
}

TextCounts count_text(const Windows& windows, const Tokenizer& tokenizer) {
  TextCounts counts;
  for (int64_t w = 0; w < windows.count; ++w) {
    const auto first = windows.ids.begin() + w * windows.length;
    const std::string before = *first == tokenizer.bos() ? "" : tokenizer.decode({first, first + 1});
    const std::string text = tokenizer.decode({first + 1, first + windows.length});
    double words = 0;
    char last = before.empty() ? ' ' : before.back();
    const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    for (const char c : text) {
      words += !is_space(c) && is_space(last) ? 1 : 0;
      last = c;
    }
    counts.bytes.push_back(static_cast<double>(text.size()));
    counts.words.push_back(words);
  }
  return counts;
}

}  // namespace bcq

// Reading tokenizer.json, or vocab.json with merges.txt, into a Tokenizer; see tokenizer.h.
// The rule of this file: a key that could change an id is obeyed or refused by name.
#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <optional>

#include "data/text/tokenizer.h"
#include "engine/core/check.h"

namespace bcq {
namespace {

bool exists(const std::string& path) { return std::filesystem::is_regular_file(path); }

// Refuse members nobody here knows the meaning of.
void known_keys(const json& node, std::initializer_list<const char*> keys, const std::string& where) {
  require_input(node.is_object(), "%s: expected an object, found %s", where, node.type_name());
  for (const auto& [key, value] : node.items()) {
    const bool known = std::any_of(keys.begin(), keys.end(), [&k = key](const char* name) { return k == name; });
    require_input(known, "%s: key \"%s\" is not supported", where, key);
  }
}

// A setting that has to be off: absent, null, false, 0, empty.
void require_off(const json& node, const char* key, const std::string& where) {
  if (!node.contains(key)) return;
  const json& v = node.at(key);
  const bool off =
      v.is_null() || v == json(false) || v == json(0.0) || v == json("") || (v.is_structured() && v.empty());
  require_input(off, "%s: \"%s\": %s is not supported", where, key, v.dump().substr(0, 80));
}

int32_t id_of(const json& v, const std::string& what) {
  require_input(v.is_number_integer() && v >= 0 && v < (1 << 24), "%s: token id %s is not a number below 2^24", what,
                v.dump().substr(0, 40));
  return v.get<int32_t>();
}

const json& list_of(const json& node, const char* key, const std::string& where) {
  require_input(node.is_object() && node.contains(key) && node.at(key).is_array(), "%s: \"%s\" has to be a list", where,
                key);
  return node.at(key);
}

std::unordered_map<std::string, int32_t> read_vocab(const json& node, const std::string& where) {
  require_input(node.is_object() && !node.empty(), "%s: the vocabulary has to be an object of token ids", where);
  std::unordered_map<std::string, int32_t> vocab;
  vocab.reserve(node.size());
  for (const auto& [token, id] : node.items()) vocab.emplace(token, id_of(id, where + ": \"" + token + "\""));
  return vocab;
}

// "left right": neither part holds a space, since byte characters do not.
std::pair<std::string, std::string> cut_merge(const std::string& line, const std::string& where, size_t number) {
  const size_t space = line.find(' ');
  const bool two = space != std::string::npos && line.find(' ', space + 1) == std::string::npos;
  require_input(two && space > 0 && space + 1 < line.size(), "%s: merge %d, \"%s\", is not two tokens", where, number,
                line.substr(0, 80));
  return {line.substr(0, space), line.substr(space + 1)};
}

Bpe::Merges read_merges(const json& list, const std::string& where) {
  Bpe::Merges merges;
  merges.reserve(list.size());
  for (const json& m : list) {
    const bool pair = m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string();
    require_input(pair || m.is_string(), "%s: merge %d is neither a string nor a pair of strings", where,
                  merges.size());
    if (pair) {
      merges.emplace_back(m[0].get<std::string>(), m[1].get<std::string>());
    } else {
      merges.push_back(cut_merge(m.get<std::string>(), where, merges.size()));
    }
  }
  return merges;
}

Bpe read_bpe(const json& model, const std::string& where) {
  known_keys(model,
             {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
              "byte_fallback", "ignore_merges", "vocab", "merges"},
             where);
  const std::string type = get<std::string>(model, "type", where);
  require_input(type == "BPE", "%s: model type \"%s\" is not supported (BPE)", where, type);
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"}) {
    require_off(model, key, where);
  }
  Bpe bpe(read_vocab(get<json>(model, "vocab", where), where), read_merges(list_of(model, "merges", where), where),
          where);
  bpe.set_ignore_merges(get_or<bool>(model, "ignore_merges", false, where));
  const std::string unknown = get_or<std::string>(model, "unk_token", "", where);
  if (!unknown.empty()) {
    require_input(bpe.find(unknown) >= 0, "%s: unk_token \"%s\" is not in the vocabulary", where, unknown);
    bpe.set_unknown(bpe.find(unknown));
  }
  return bpe;
}

// The form of an added token in tokenizer_config.json and special_tokens_map.json: its text,
// or an object with its flags.
AddedToken read_token(const json& node, const std::string& where) {
  AddedToken token;
  if (node.is_string()) {
    token.content = node.get<std::string>();
    return token;
  }
  known_keys(node, {"__type", "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}, where);
  token.content = get<std::string>(node, "content", where);
  token.single_word = get_or<bool>(node, "single_word", false, where);
  token.lstrip = get_or<bool>(node, "lstrip", false, where);
  token.rstrip = get_or<bool>(node, "rstrip", false, where);
  token.normalized = get_or<bool>(node, "normalized", false, where);
  return token;
}

json read_if_there(const std::string& path) { return exists(path) ? read_json(path) : json::object(); }

}  // namespace

Tokenizer Tokenizer::load(const std::string& dir) {
  if (exists(dir + "/tokenizer.json")) return from_json(dir);
  require_input(exists(dir + "/vocab.json") && exists(dir + "/merges.txt"),
                "%s: no tokenizer: neither tokenizer.json nor vocab.json with merges.txt", dir);
  return from_vocab(dir);
}

Tokenizer Tokenizer::from_json(const std::string& dir) {
  const std::string where = dir + "/tokenizer.json";
  const json root = read_json(where);
  known_keys(root,
             {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
              "decoder", "model"},
             where);
  const std::string version = get_or<std::string>(root, "version", "1.0", where);
  require_input(version == "1.0", "%s: version \"%s\" is not supported", where, version);
  const json normalizer = get_or<json>(root, "normalizer", nullptr, where);
  require_input(normalizer.is_null(), "%s: normalizer %s is not supported", where, normalizer.dump().substr(0, 80));
  const json decoder = get_or<json>(root, "decoder", nullptr, where);
  require_input(decoder.is_null() || get<std::string>(decoder, "type", where) == "ByteLevel",
                "%s: decoder %s is not supported", where, decoder.dump().substr(0, 80));

  Tokenizer out(read_bpe(get<json>(root, "model", where), where + ": model"));
  if (root.contains("added_tokens")) out.read_added(list_of(root, "added_tokens", where), where + ": added_tokens");
  const std::string cut = where + ": pre_tokenizer";
  const json pre = get_or<json>(root, "pre_tokenizer", nullptr, where);
  require_input(pre.is_object(), "%s: missing; a byte-level one is needed", cut);
  out.read_pre_tokenizer(pre, cut);
  out.read_post_processor(get_or<json>(root, "post_processor", nullptr, where), where + ": post_processor");
  out.finish(where);

  // transformers lets some of these settings override tokenizer.json, depending on its version.
  const std::string config_path = dir + "/tokenizer_config.json";
  const json config = read_if_there(config_path);
  require_input(!get_or<bool>(config, "add_bos_token", false, config_path) || out.bos() >= 0,
                "%s: add_bos_token is true, but the post-processor of tokenizer.json adds nothing", config_path);
  require_input(get_or<bool>(config, "add_prefix_space", out.add_prefix_space_, config_path) == out.add_prefix_space_,
                "%s: add_prefix_space contradicts tokenizer.json", config_path);
  return out;
}

void Tokenizer::read_added(const json& list, const std::string& where) {
  for (const json& node : list) {
    AddedToken token = read_token(node, where);
    token.id = id_of(get<json>(node, "id", where), where + ": \"" + token.content + "\"");
    add(token, where);
  }
}

void Tokenizer::read_pre_tokenizer(const json& node, const std::string& where) {
  const std::string type = get<std::string>(node, "type", where);
  const json parts = type == "Sequence" ? list_of(node, "pretokenizers", where) : json::array({node});
  for (size_t i = 0; i < parts.size(); ++i) {
    const json& part = parts[i];
    const std::string kind = get<std::string>(part, "type", where);
    const bool last = i + 1 == parts.size();
    if (kind == "ByteLevel" && last) {
      known_keys(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, where);
      add_prefix_space_ = get<bool>(part, "add_prefix_space", where);
      require_input(!add_prefix_space_ || steps_.empty(), "%s: add_prefix_space after a Split is not supported", where);
      if (get_or<bool>(part, "use_regex", true, where)) steps_.emplace_back(kGpt2Pattern, where);
      return;
    }
    require_input(kind == "Split", "%s: \"%s\" %s is not supported", where, kind,
                  last ? "as the last step" : "before the last step");
    known_keys(part, {"type", "pattern", "behavior", "invert"}, where);
    const std::string behavior = get<std::string>(part, "behavior", where);
    require_input(behavior == "Isolated", "%s: Split behavior \"%s\" is not supported (Isolated)", where, behavior);
    require_off(part, "invert", where);
    const json pattern = get<json>(part, "pattern", where);
    known_keys(pattern, {"Regex"}, where + ": pattern");
    steps_.emplace_back(get<std::string>(pattern, "Regex", where), where);
  }
  throw InputError(format("%s: there is no ByteLevel step", where));
}

void Tokenizer::read_post_processor(const json& node, const std::string& where) {
  if (node.is_null()) return;
  const std::string type = get<std::string>(node, "type", where);
  if (type == "ByteLevel") return;  // moves offsets only
  if (type == "Sequence") {
    for (const json& part : list_of(node, "processors", where)) read_post_processor(part, where);
    return;
  }
  require_input(type == "TemplateProcessing", "%s: \"%s\" is not supported", where, type);
  const json table = get<json>(node, "special_tokens", where);
  std::vector<int32_t> before, after;
  int texts = 0;
  for (const json& part : list_of(node, "single", where)) {
    known_keys(part, {"SpecialToken", "Sequence"}, where);
    if (part.contains("Sequence")) {
      require_input(get<std::string>(part.at("Sequence"), "id", where) == "A",
                    "%s: a template with a sequence that is "
                    "not A is not supported",
                    where);
      ++texts;
      continue;
    }
    const std::string name = get<std::string>(get<json>(part, "SpecialToken", where), "id", where);
    const json entry = get<json>(table, name.c_str(), where + ": special_tokens");
    for (const json& id : list_of(entry, "ids", where)) (texts ? after : before).push_back(id_of(id, where));
  }
  require_input(texts == 1, "%s: the template holds the text %d times, not once", where, texts);
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
}

// vocab.json and merges.txt as the GPT-2 tokenizer of transformers reads them.
Tokenizer Tokenizer::from_vocab(const std::string& dir) {
  const std::string vocab_path = dir + "/vocab.json", merges_path = dir + "/merges.txt";
  const std::string config_path = dir + "/tokenizer_config.json", map_path = dir + "/special_tokens_map.json";
  const json config = read_if_there(config_path), special_map = read_if_there(map_path);
  const std::string kind = get_or<std::string>(config, "tokenizer_class", "GPT2Tokenizer", config_path);
  require_input(kind == "GPT2Tokenizer" || kind == "GPT2TokenizerFast", "%s: tokenizer_class \"%s\" is not supported",
                config_path, kind);

  Bpe::Merges merges;
  const std::string text = read_file(merges_path);
  for (size_t i = 0, number = 1; i < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', i), text.size());
    std::string line = text.substr(i, end - i);
    i = end + 1;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const bool comment = number == 1 && line.compare(0, 8, "#version") == 0;
    if (!comment && !(line.empty() && i >= text.size())) merges.push_back(cut_merge(line, merges_path, number));
  }
  Tokenizer out(Bpe(read_vocab(read_json(vocab_path), vocab_path), merges, dir));
  out.steps_.emplace_back(kGpt2Pattern, vocab_path);
  out.add_prefix_space_ = get_or<bool>(config, "add_prefix_space", false, config_path);

  // Special tokens by role, then further ones. GPT-2's own default fills roles nobody names.
  std::vector<json> special;
  std::string bos;
  for (const char* role :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    json token = get_or<json>(special_map, role, get_or<json>(config, role, nullptr, config_path), map_path);
    const std::string name = role;
    const bool by_default = name == "bos_token" || name == "eos_token" || name == "unk_token";
    if (token.is_null() && by_default && out.bpe_.find("<|endoftext|>") >= 0) token = "<|endoftext|>";
    if (token.is_null()) continue;
    if (name == "bos_token") bos = read_token(token, map_path).content;
    special.push_back(token);
  }
  for (const json* file : {&special_map, &config}) {
    for (const json& t : get_or<json>(*file, "additional_special_tokens", json::array(), dir)) special.push_back(t);
    require_off(*file, "extra_special_tokens", dir);
  }
  for (const json& node : special) {
    AddedToken token = read_token(node, map_path);
    token.id = out.bpe_.find(token.content);
    require_input(token.id >= 0, "%s: special token \"%s\" is not in vocab.json", dir, token.content);
    const auto same = [&](const AddedToken& t) { return t.content == token.content; };
    if (std::none_of(out.added_.begin(), out.added_.end(), same)) out.add(token, map_path);
  }
  const json decoder = get_or<json>(config, "added_tokens_decoder", json::object(), config_path);
  for (const auto& [id, node] : decoder.items()) {
    AddedToken token = read_token(node, config_path);
    token.id = id_of(json::parse(id, nullptr, false), config_path + ": added_tokens_decoder");
    out.add(token, config_path);
  }
  require_input(!exists(dir + "/added_tokens.json"), "%s/added_tokens.json is not supported", dir);

  const std::string model_path = dir + "/config.json";
  const bool opt = get_or<std::string>(read_if_there(model_path), "model_type", "", model_path) == "opt";
  if (get_or<bool>(config, "add_bos_token", opt, config_path)) {
    require_input(out.bpe_.find(bos) >= 0,
                  "%s: a beginning-of-text token is to be added, but none is named (bos_token)", dir);
    out.prefix_ = {out.bpe_.find(bos)};
  }
  out.finish(dir);
  return out;
}

// Adding the same token again is allowed while it means the same.
void Tokenizer::add(const AddedToken& token, const std::string& where) {
  const std::string& text = token.content;
  require_input(!text.empty() && invalid_utf8(text) < 0, "%s: an added token is empty", where);
  const int32_t id = bpe_.find(text);
  require_input(id < 0 || id == token.id, "%s: added token \"%s\" has id %d, in the vocabulary it has %d", where, text,
                token.id, id);
  for (const AddedToken& t : added_) {
    const bool same = t.content == text && t.id == token.id && t.single_word == token.single_word &&
                      t.lstrip == token.lstrip && t.rstrip == token.rstrip;
    if (same) return;
    require_input(t.content != text && t.id != token.id, "%s: added tokens \"%s\" (%d) and \"%s\" (%d) contradict",
                  where, t.content, t.id, text, token.id);
  }
  added_.push_back(token);
}

void Tokenizer::finish(const std::string& where) {
  const auto store = [&](int32_t id, const std::string& token) {
    const size_t at = static_cast<size_t>(id);
    if (at >= bytes_.size()) bytes_.resize(at + 1);
    const std::string spelled = token_bytes(token);
    require_input(bytes_[at].empty() || bytes_[at] == spelled, "%s: id %d stands for two tokens, one is \"%s\"", where,
                  id, token);
    bytes_[at] = spelled;
  };
  for (const auto& [token, id] : bpe_.vocab()) store(id, token);
  for (const AddedToken& t : added_) {
    store(t.id, t.content);
    starts_[t.normalized ? 1 : 0][static_cast<uint8_t>(t.content[0])] = true;
  }
  std::stable_sort(added_.begin(), added_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
  for (const std::vector<int32_t>* list : {&prefix_, &suffix_}) {
    for (const int32_t id : *list) {
      const bool known = id < vocab_size() && !bytes_[static_cast<size_t>(id)].empty();
      require_input(known, "%s: the post-processor adds id %d, which is no token", where, id);
    }
  }
}

}  // namespace bcq

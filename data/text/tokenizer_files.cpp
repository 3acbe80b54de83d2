// Reading tokenizer.json, or vocab.json with merges.txt, into a Tokenizer; see tokenizer.h.
// The rule of this file: a key that could change an id is obeyed or refused by name.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <sstream>

#include "data/text/normalize.h"
#include "data/text/tokenizer.h"
#include "engine/core/check.h"
#include "engine/file/json.h"

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

Bpe::Merges read_merges_file(const std::string& path) {
  Bpe::Merges merges;
  std::istringstream text(read_file(path));
  std::string line;
  for (size_t number = 1; std::getline(text, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const bool comment = number == 1 && line.starts_with("#version");
    if (!comment && !(line.empty() && text.peek() == EOF)) merges.push_back(cut_merge(line, path, number));
  }
  return merges;
}

Bpe read_bpe(const json& model, const std::string& where) {
  known_keys(model,
             {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
              "byte_fallback", "ignore_merges", "vocab", "merges"},
             where);
  const std::string type = get_or<std::string>(model, "type", "BPE", where);  // old files have none; merges tell
  require_input(type == "BPE", "%s: model type \"%s\" is not supported (BPE)", where, type);
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) require_off(model, key, where);
  Bpe bpe(read_vocab(get<json>(model, "vocab", where), where), read_merges(list_of(model, "merges", where), where),
          where);
  bpe.options.ignore_merges = get_or<bool>(model, "ignore_merges", false, where);
  bpe.options.byte_fallback = get_or<bool>(model, "byte_fallback", false, where);
  const std::string unknown = get_or<std::string>(model, "unk_token", "", where);
  if (!unknown.empty()) {
    require_input(bpe.find(unknown) >= 0, "%s: unk_token \"%s\" is not in the vocabulary", where, unknown);
    bpe.options.unknown = bpe.find(unknown);
    bpe.options.fuse_unknown = get_or<bool>(model, "fuse_unk", false, where);
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

// A key of added_tokens_decoder.
int32_t id_of_key(const std::string& key, const std::string& where) {
  int32_t id = 0;
  const char* end = key.data() + key.size();
  const auto [stop, error] = std::from_chars(key.data(), end, id);
  require_input(error == std::errc() && stop == end && id >= 0, "%s: %s is no token id", where, bcq::quoted(key));
  return id_of(id, where);
}

// Normalizers whose settings leave every text as it is.
bool changes_nothing(const json& node, const std::string& type, const std::string& where) {
  const auto off = [&](const char* key) { return !get_or<bool>(node, key, false, where); };
  if (type == "Strip") return off("strip_left") && off("strip_right");
  if (type == "Replace") {
    const json pattern = get<json>(node, "pattern", where);
    return pattern.is_object() && pattern.contains("String") && pattern["String"] == get<json>(node, "content", where);
  }
  return type == "BertNormalizer" && off("clean_text") && off("handle_chinese_chars") && off("strip_accents") &&
         off("lowercase");
}

std::string quoted_type(const json& node) { return node.dump().substr(0, 80); }

}  // namespace

// Fills a Tokenizer from the files of a folder.
class TokenizerReader {
 public:
  static Tokenizer from_json(const std::string& dir) {
    const std::string where = dir + "/tokenizer.json";
    const json root = read_json(where);
    known_keys(root,
               {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                "decoder", "model"},
               where);
    const std::string version = get_or<std::string>(root, "version", "1.0", where);
    require_input(version == "1.0", "%s: version \"%s\" is not supported", where, version);
    const json decoder = get_or<json>(root, "decoder", nullptr, where);
    TokenizerReader reader(read_bpe(get<json>(root, "model", where), where + ": model"));
    const std::string cut = where + ": pre_tokenizer";
    const json pre = get_or<json>(root, "pre_tokenizer", nullptr, where);
    const bool metaspace = pre.is_object() && get<std::string>(pre, "type", cut) == "Metaspace";
    if (pre.is_null() || metaspace) reader.out_.bpe_.options.characters = true;
    reader.read_normalizer(get_or<json>(root, "normalizer", nullptr, where), where);
    if (metaspace) {
      reader.read_metaspace(pre, cut + ": Metaspace");
    } else if (pre.is_null()) {
      require_input(!reader.out_.metaspace_.space.empty(),
                    "%s: missing; a byte-level one is needed, or a normalizer that replaces spaces", cut);
    } else {
      reader.read_pre_tokenizer(pre, cut);
      require_input(reader.byte_level_, "%s: there is no ByteLevel step", cut);
    }
    reader.read_decoder(decoder, where);
    if (root.contains("added_tokens"))
      reader.read_added(list_of(root, "added_tokens", where), where + ": added_tokens");
    reader.read_post_processor(get_or<json>(root, "post_processor", nullptr, where), where + ": post_processor");
    Tokenizer out = reader.finish(where);

    // transformers lets some of these settings override tokenizer.json, depending on its version.
    const std::string config_path = dir + "/tokenizer_config.json";
    const json config = read_if_there(config_path);
    require_input(!get_or<bool>(config, "add_bos_token", false, config_path) || out.bos() >= 0,
                  "%s: add_bos_token is true, but the post-processor of tokenizer.json adds nothing", config_path);
    const bool prefixes =
        reader.prepends_ || out.prefix_step_ >= 0 || out.metaspace_.prepend != Tokenizer::Metaspace::Prepend::Never;
    require_input(get_or<bool>(config, "add_prefix_space", prefixes, config_path) == prefixes,
                  "%s: add_prefix_space contradicts tokenizer.json", config_path);
    return out;
  }

  // vocab.json and merges.txt as the GPT-2 tokenizer of transformers reads them.
  static Tokenizer from_vocab(const std::string& dir) {
    const std::string vocab_path = dir + "/vocab.json", config_path = dir + "/tokenizer_config.json";
    const json config = read_if_there(config_path), special_map = read_if_there(dir + "/special_tokens_map.json");
    const std::string kind = get_or<std::string>(config, "tokenizer_class", "GPT2Tokenizer", config_path);
    require_input(kind == "GPT2Tokenizer" || kind == "GPT2TokenizerFast", "%s: tokenizer_class \"%s\" is not supported",
                  config_path, kind);
    TokenizerReader reader(
        Bpe(read_vocab(read_json(vocab_path), vocab_path), read_merges_file(dir + "/merges.txt"), dir));
    if (get_or<bool>(config, "add_prefix_space", false, config_path)) reader.out_.prefix_step_ = 0;
    reader.add_step(kGpt2Pattern, vocab_path);
    // transformers reads the older file only where the newer list is missing.
    const json decoder = get_or<json>(config, "added_tokens_decoder", json::object(), config_path);
    require_input(decoder.is_object(), "%s: added_tokens_decoder is no object", config_path);
    for (const auto& [id, node] : decoder.items()) {
      AddedToken token = read_token(node, config_path);
      token.id = id_of_key(id, config_path + ": added_tokens_decoder");
      reader.add(token, config_path);
    }
    const std::string older_path = dir + "/added_tokens.json";
    const json older = decoder.empty() ? read_if_there(older_path) : json::object();
    require_input(older.is_object(), "%s: this is no object of token ids", older_path);
    for (const auto& [content, id] : older.items()) {
      AddedToken token;
      token.content = content;
      token.id = id_of(id, older_path + ": " + bcq::quoted(content));
      reader.add(token, older_path);
    }
    reader.read_roles(config, special_map, dir);
    reader.read_first(config, dir);
    return reader.finish(dir);
  }

 private:
  TokenizerReader(Bpe bpe) : out_(std::move(bpe)) {}

  void read_added(const json& list, const std::string& where) {
    for (const json& node : list) {
      AddedToken token = read_token(node, where);
      token.id = id_of(get<json>(node, "id", where), where + ": \"" + token.content + "\"");
      add(token, where);
    }
  }

  void read_normalizer(const json& node, const std::string& where) {
    if (node.is_null()) return;
    const std::string type = get<std::string>(node, "type", where + ": normalizer");
    if (type == "Sequence") {
      for (const json& part : list_of(node, "normalizers", where)) read_normalizer(part, where);
    } else if (type == "NFC") {
      out_.normalizers_.push_back(nfc);
    } else if (type == "Prepend" && out_.bpe_.options.characters) {
      prepends_ = true;
      const std::string first = get<std::string>(node, "prepend", where);
      out_.normalizers_.push_back([first](std::string_view text) { return first + std::string(text); });
    } else if (type == "Replace" && out_.bpe_.options.characters &&
               get<json>(node, "pattern", where) == json{{"String", " "}}) {
      set_space(get<std::string>(node, "content", where), where + ": normalizer");
      const std::string& space = out_.metaspace_.space;
      out_.normalizers_.push_back([space](std::string_view text) { return replace_all(text, " ", space); });
    } else {
      require_input(changes_nothing(node, type, where + ": normalizer"), "%s: normalizer %s is not supported", where,
                    quoted_type(node));
    }
  }

  void set_space(const std::string& space, const std::string& where) {
    std::string& known = out_.metaspace_.space;
    require_input(!space.empty() && space != " " && (known.empty() || known == space),
                  "%s: spaces cannot be replaced by %s%s", where, bcq::quoted(space),
                  known.empty() ? "" : ", and by " + bcq::quoted(known));
    known = space;
  }

  void read_metaspace(const json& node, const std::string& where) {
    using Prepend = Tokenizer::Metaspace::Prepend;
    known_keys(node, {"type", "replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep"}, where);
    set_space(get<std::string>(node, "replacement", where), where);
    set_space(get_or<std::string>(node, "str_rep", out_.metaspace_.space, where), where);  // of older files
    const std::string scheme = get_or<std::string>(
        node, "prepend_scheme", get_or<bool>(node, "add_prefix_space", true, where) ? "always" : "never", where);
    const std::map<std::string, Prepend> schemes = {
        {"never", Prepend::Never}, {"first", Prepend::First}, {"always", Prepend::Always}};
    require_input(schemes.count(scheme), "%s: prepend_scheme %s is not supported", where, bcq::quoted(scheme));
    out_.metaspace_.prepend = schemes.at(scheme);
    out_.metaspace_.split = get_or<bool>(node, "split", true, where);
  }

  // A decoder has to spell tokens as they are spelled here. (What it takes from a text's beginning stays.)
  void read_decoder(const json& node, const std::string& where) {
    if (node.is_null()) return;
    const std::string type = get<std::string>(node, "type", where + ": decoder"), &space = out_.metaspace_.space;
    if (type == "Sequence" && out_.bpe_.options.characters) {
      for (const json& part : list_of(node, "decoders", where)) read_decoder(part, where);
      return;
    }
    const bool known = out_.bpe_.options.characters
                           ? type == "Fuse" || type == "Strip" ||
                                 (type == "ByteFallback" && out_.bpe_.options.byte_fallback) ||
                                 (type == "Metaspace" && get<std::string>(node, "replacement", where) == space) ||
                                 (type == "Replace" && get<json>(node, "pattern", where) == json{{"String", space}} &&
                                  get<std::string>(node, "content", where) == " ")
                           : type == "ByteLevel";
    require_input(known, "%s: decoder %s is not supported", where, quoted_type(node));
  }

  void add_step(const std::string& pattern, const std::string& where) {
    constexpr size_t kMost = 32;
    require_input(out_.steps_.size() < kMost, "%s: more than %d steps are not supported", where, kMost);
    out_.steps_.emplace_back(pattern, where);
  }

  void read_pre_tokenizer(const json& node, const std::string& where) {
    const std::string type = get<std::string>(node, "type", where);
    require_input(!byte_level_, "%s: \"%s\" after ByteLevel is not supported", where, type);
    if (type == "Sequence") {
      for (const json& part : list_of(node, "pretokenizers", where)) read_pre_tokenizer(part, where);
    } else if (type == "ByteLevel") {
      known_keys(node, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, where);
      byte_level_ = true;
      if (get<bool>(node, "add_prefix_space", where)) out_.prefix_step_ = static_cast<int>(out_.steps_.size());
      if (get_or<bool>(node, "use_regex", true, where)) add_step(kGpt2Pattern, where);
    } else if (type == "Digits") {
      known_keys(node, {"type", "individual_digits"}, where);
      add_step(get_or<bool>(node, "individual_digits", false, where) ? "\\p{N}" : "\\p{N}+", where);
    } else {
      require_input(type == "Split", "%s: \"%s\" is not supported", where, type);
      known_keys(node, {"type", "pattern", "behavior", "invert"}, where);
      const std::string behavior = get<std::string>(node, "behavior", where);
      require_input(behavior == "Isolated", "%s: Split behavior \"%s\" is not supported (Isolated)", where, behavior);
      require_off(node, "invert", where);
      const json pattern = get<json>(node, "pattern", where);
      known_keys(pattern, {"Regex"}, where + ": pattern");
      add_step(get<std::string>(pattern, "Regex", where), where);
    }
  }

  void read_post_processor(const json& node, const std::string& where) {
    if (node.is_null()) return;
    const std::string type = get<std::string>(node, "type", where);
    if (type == "ByteLevel") return;  // moves offsets only
    if (type == "Sequence") {
      for (const json& part : list_of(node, "processors", where)) read_post_processor(part, where);
      return;
    }
    std::vector<int32_t> before, after;
    if (type == "RobertaProcessing" || type == "BertProcessing") {
      for (const char* key : {"cls", "sep"}) {
        const json& pair = list_of(node, key, where);
        require_input(pair.size() == 2, "%s: \"%s\" has to be a token and its id", where, key);
        (key[0] == 'c' ? before : after).push_back(id_of(pair[1], where));
      }
    } else {
      require_input(type == "TemplateProcessing", "%s: \"%s\" is not supported", where, type);
      const json table = get<json>(node, "special_tokens", where);
      int texts = 0;
      for (const json& part : list_of(node, "single", where)) {
        known_keys(part, {"SpecialToken", "Sequence"}, where);
        if (part.contains("Sequence")) {
          require_input(get<std::string>(part.at("Sequence"), "id", where) == "A",
                        "%s: a template with a sequence that is not A is not supported", where);
          ++texts;
          continue;
        }
        const std::string name = get<std::string>(get<json>(part, "SpecialToken", where), "id", where);
        const json entry = get<json>(table, name.c_str(), where + ": special_tokens");
        for (const json& id : list_of(entry, "ids", where)) (texts ? after : before).push_back(id_of(id, where));
      }
      require_input(texts == 1, "%s: the template holds the text %d times, not once", where, texts);
    }
    out_.prefix_.insert(out_.prefix_.begin(), before.begin(), before.end());
    out_.suffix_.insert(out_.suffix_.end(), after.begin(), after.end());
  }

  // Special tokens by role, then further ones. GPT-2's own default fills roles nobody names.
  void read_roles(const json& config, const json& special_map, const std::string& dir) {
    const std::string config_path = dir + "/tokenizer_config.json", map_path = dir + "/special_tokens_map.json";
    std::vector<json> special;
    for (const std::string role :
         {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      json token =
          get_or<json>(special_map, role.c_str(), get_or<json>(config, role.c_str(), nullptr, config_path), map_path);
      const bool by_default = role == "bos_token" || role == "eos_token" || role == "unk_token";
      if (token.is_null() && by_default && find("<|endoftext|>") >= 0) token = "<|endoftext|>";
      if (token.is_null()) continue;
      if (role == "bos_token") bos_ = read_token(token, map_path).content;
      special.push_back(token);
    }
    for (const json* file : {&special_map, &config})
      for (const char* key : {"additional_special_tokens", "extra_special_tokens"})  // a list, or an object of roles
        for (const json& token : get_or<json>(*file, key, json::array(), dir)) special.push_back(token);
    for (const json& node : special) {
      AddedToken token = read_token(node, map_path);
      token.id = find(token.content);
      require_input(token.id >= 0,
                    "%s: special token %s is in none of vocab.json, added_tokens_decoder and added_tokens.json", dir,
                    bcq::quoted(token.content));
      // One that is named by its text alone has the flags it was added with.
      if (node.is_object() || !by_content_.count(token.content)) add(token, map_path);
    }
  }

  // What encode() puts first.
  void read_first(const json& config, const std::string& dir) {
    const std::string model_path = dir + "/config.json";
    const bool opt = get_or<std::string>(read_if_there(model_path), "model_type", "", model_path) == "opt";
    if (!get_or<bool>(config, "add_bos_token", opt, dir + "/tokenizer_config.json")) return;
    require_input(find(bos_) >= 0, "%s: a beginning-of-text token is to be added, but none is named (bos_token)", dir);
    out_.prefix_ = {find(bos_)};
  }

  int32_t find(const std::string& token) const {
    const auto added = by_content_.find(token);
    return added != by_content_.end() ? out_.added_[added->second].id : out_.bpe_.find(token);
  }

  // Adding the same token again is allowed while it means the same.
  void add(const AddedToken& token, const std::string& where) {
    const std::string& text = token.content;
    require_input(!text.empty(), "%s: an added token is empty", where);
    const int32_t id = out_.bpe_.find(text);
    require_input(id < 0 || id == token.id, "%s: added token %s has id %d, in the vocabulary it has %d", where,
                  bcq::quoted(text), token.id, id);
    const auto by_content = by_content_.find(text);
    const auto by_id = by_id_.find(token.id);
    if (by_content == by_content_.end() && by_id == by_id_.end()) {
      by_content_[text] = by_id_[token.id] = out_.added_.size();
      out_.added_.push_back(token);
      return;
    }
    const AddedToken& t = out_.added_[by_content != by_content_.end() ? by_content->second : by_id->second];
    const bool same = t.content == text && t.id == token.id && t.single_word == token.single_word &&
                      t.lstrip == token.lstrip && t.rstrip == token.rstrip;
    require_input(same, "%s: added tokens %s (%d) and %s (%d) contradict", where, bcq::quoted(t.content), t.id,
                  bcq::quoted(text), token.id);
  }

  Tokenizer finish(const std::string& where) {
    std::vector<std::string>& bytes = out_.bytes_;
    const auto store = [&](int32_t id, const std::string& token) {
      const size_t at = static_cast<size_t>(id);
      if (at >= bytes.size()) bytes.resize(at + 1);
      const std::string spelled = out_.spelled(token);
      require_input(bytes[at].empty() || bytes[at] == spelled, "%s: id %d stands for two tokens, one is \"%s\"", where,
                    id, token);
      bytes[at] = spelled;
    };
    for (const auto& [token, id] : out_.bpe_.vocab()) store(id, token);
    for (AddedToken& t : out_.added_) {
      store(t.id, t.content);
      if (t.normalized) t.content = out_.normalize(t.content);
      out_.starts_[t.normalized ? 1 : 0][static_cast<uint8_t>(t.content[0])] = true;
    }
    std::stable_sort(out_.added_.begin(), out_.added_.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
    for (const std::vector<int32_t>* list : {&out_.prefix_, &out_.suffix_}) {
      for (const int32_t id : *list) {
        const bool known = id < out_.vocab_size() && !bytes[static_cast<size_t>(id)].empty();
        require_input(known, "%s: the post-processor adds id %d, which is no token", where, id);
      }
    }
    return std::move(out_);
  }

  Tokenizer out_;
  bool byte_level_ = false;                   // that step has been read
  bool prepends_ = false;                     // a normalizer puts something first
  std::map<std::string, size_t> by_content_;  // of out_.added_
  std::map<int32_t, size_t> by_id_;
  std::string bos_;  // the token of that role, of vocab.json
};

Tokenizer Tokenizer::load(const std::string& dir) {
  if (exists(dir + "/tokenizer.json")) return TokenizerReader::from_json(dir);
  require_input(exists(dir + "/vocab.json") && exists(dir + "/merges.txt"),
                "%s: no tokenizer: neither tokenizer.json nor vocab.json with merges.txt", dir);
  return TokenizerReader::from_vocab(dir);
}

}  // namespace bcq

// OPT, BLOOM and LLaMA's families against transformers: outputs and every site of small fixtures, names, and what
// loading refuses. Real shapes: make parity.
#include "models/families.h"
#include "tests/model_fixtures.h"

using namespace bcq;
using namespace bcq::test;

TEST_CASE("language models: every output equals transformers'") {
  for (const auto& entry : kLanguages) {
    const std::string& fixture = entry.first;
    INFO(fixture);
    const auto model = load_model(fixture);
    compare_with_reference(*model, ids_of(fixture), fixture, entry.second);
  }
}

TEST_CASE("language models: logits depend on the tokens before, not on those after") {
  for (const std::string& fixture : {kOpt, kBloom, kLlama}) {
    const auto model = load_model(fixture);
    Batch text = ids_of(fixture);
    const Tensor before = model->forward(kFloat, text);
    text.ids[6] = (text.ids[6] + 1) % 53;  // of the first window
    const Tensor after = model->forward(kFloat, text);
    for (int64_t t = 0; t < 22; ++t) {
      const bool equal = std::memcmp(before.data + t * 53, after.data + t * 53, 53 * sizeof(float)) == 0;
      CHECK(equal == (t < 6 || t >= 11));
    }
  }
}

TEST_CASE("opt: other forms of the network are refused by key") {
  const std::pair<const char*, json> values[] = {{"activation_function", "silu"},
                                                 {"enable_bias", 1},
                                                 {"tie_word_embeddings", false},
                                                 {"word_embed_proj_dim", 0},
                                                 {"quantization_config", {{"bits", 4}}},
                                                 {"num_attention_heads", 3},
                                                 {"num_attention_heads", "two"},
                                                 {"num_hidden_layers", 0},
                                                 {"num_hidden_layers", 1.5},
                                                 {"ffn_dim", -4}};
  for (const auto& entry : values) {
    const char* key = entry.first;
    const json& value = entry.second;
    Variant v(kOpt);
    v.config[key] = value;
    CAPTURE(key);
    CHECK(contains(v.refusal(), key));
    CHECK(contains(v.refusal(), "config.json"));
  }
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size",
                          "max_position_embeddings"}) {
    Variant v(kOpt);
    v.config.erase(key);
    CHECK(contains(v.refusal(), key));
  }
}

TEST_CASE("opt: a config that takes the final norm away leaves one in the file unused") {
  Variant v(kOpt);
  v.config["_remove_final_layer_norm"] = true;
  const auto removed = v.load();
  const Tensor x = random({1, 5, 16}, 1);
  CHECK(same_bits(removed->head(kFloat, x), linear(nullptr, x, v.tensors["model.decoder.embed_tokens.weight"], {})));
  CHECK(removed->info().parameters == opt_parameters(16, 2, 40, 53, 24) - 32);
  v.tensors["model.decoder.version"] = Tensor({1});  // of files converted from fairseq
  CHECK(v.refusal() == "");
  v.config["enable_bias"] = false;  // but biases that are there are not dropped in silence
  CHECK(contains(v.refusal(), ".bias"));
}

TEST_CASE("bloom: old keys, names without a prefix and aliases of the embedding give the same bits") {
  Variant v(kBloom);
  const Tensor want = v.load()->forward(kFloat, ids_of(kBloom));
  const auto logits = [&] { return v.load()->forward(kFloat, ids_of(kBloom)); };
  std::string embed = "transformer.word_embeddings.weight";

  SUBCASE("keys of the config") {
    const std::pair<const char*, const char*> keys[] = {
        {"hidden_size", "n_embed"}, {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"}};
    for (const auto& [key, other] : keys) {
      v.config[other] = v.config[key];
      v.config.erase(key);
    }
    for (const char* key : {"layer_norm_epsilon", "apply_residual_connection_post_layernorm"}) v.config.erase(key);
    CHECK(same_bits(logits(), want));
  }
  SUBCASE("no prefix") {
    std::vector<std::string> names;
    for (const auto& entry : v.tensors) names.push_back(entry.first);
    for (const auto& name : names) v.rename(name, name.substr(12));
    CHECK(same_bits(logits(), want));
    v.rename("word_embeddings.weight", "lm_head.weight");
    CHECK(same_bits(logits(), want));
  }
  SUBCASE("lm_head alone, and both") {
    v.tensors["lm_head.weight"] = v.tensors[embed].clone();
    CHECK(same_bits(logits(), want));
    CHECK(v.load()->info().parameters == bloom_parameters(16, 2, 53));
    v.tensors["lm_head.weight"][7] += 0.25f;
    CHECK(contains(v.refusal(), "lm_head.weight"));
    v.tensors["lm_head.weight"] = v.tensors[embed];
    v.tensors.erase(embed);
    CHECK(same_bits(logits(), want));
  }
  SUBCASE("aliases in the metadata, either way") {
    CHECK(same_bits(v.load(false, {{"lm_head.weight", embed}})->forward(kFloat, ids_of(kBloom)), want));
    v.rename(embed, "a.shared.weight");
    CHECK(same_bits(v.load(false, {{embed, "a.shared.weight"}})->forward(kFloat, ids_of(kBloom)), want));
    CHECK(same_bits(v.load(false, {{"lm_head.weight", "a.shared.weight"}})->forward(kFloat, ids_of(kBloom)), want));
    CHECK(contains(v.refusal(), embed));
  }
}

TEST_CASE("bloom: other forms of the network are refused by key") {
  const std::pair<const char*, json> values[] = {{"tie_word_embeddings", false},
                                                 {"quantization_config", {{"bits", 4}}},
                                                 {"n_head", 3},
                                                 {"n_head", "four"},
                                                 {"n_layer", 0},
                                                 {"layer_norm_epsilon", "small"},
                                                 {"hidden_size", -16},
                                                 {"vocab_size", 1.5}};
  for (const auto& entry : values) {
    const char* key = entry.first;
    Variant v(kBloom);
    v.config[key] = entry.second;
    CAPTURE(key);
    const std::string named = std::string(key) == "n_head" ? "head" : key;
    CHECK(contains(v.refusal(), named));
    CHECK(contains(v.refusal(), "config.json"));
  }
  Variant v(kVit);
  v.config = read_json(kBloom + "/config.json");
  CHECK(contains(v.refusal(), "word_embeddings_layernorm"));
}

TEST_CASE("llama: other forms of the network are refused by key") {
  const std::pair<const char*, json> values[] = {{"hidden_act", "gelu"},
                                                 {"attention_bias", 1},
                                                 {"mlp_bias", true},  // and there are none in the file
                                                 {"tie_word_embeddings", true},
                                                 {"pretraining_tp", 2},
                                                 {"num_key_value_heads", 3},
                                                 {"num_key_value_heads", "two"},
                                                 {"head_dim", 7},
                                                 {"rms_norm_eps", -1},
                                                 {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
                                                 {"sliding_window", 8},
                                                 {"quantization_config", {{"bits", 4}}},
                                                 {"auto_map", {{"AutoModel", "x.py"}}},
                                                 {"partial_rotary_factor", 0.5}};
  for (const auto& entry : values) {
    const char* key = entry.first;
    Variant v(kLlama);
    v.config[key] = entry.second;
    CAPTURE(key);
    const std::string named = std::string(key) == "mlp_bias"              ? "gate_proj.bias"
                              : std::string(key) == "tie_word_embeddings" ? "lm_head.weight"
                              : std::string(key) == "head_dim"            ? "heads of 7"
                                                                          : key;
    CHECK(contains(v.refusal(), named));
  }
  const std::pair<const char*, json> rope[] = {
      {"rope_type", "yarn"},     {"factor", nullptr}, {"factor", "eight"}, {"low_freq_factor", nullptr},
      {"high_freq_factor", 0.5}, {"rope_theta", 0},   {"beta_fast", 32},   {"partial_rotary_factor", 0.5},
      {"type", "linear"}};
  for (const auto& entry : rope) {
    const char* key = entry.first;
    Variant v(kLlama);
    v.config["rope_parameters"][key] = entry.second;
    CAPTURE(key);
    CHECK(contains(v.refusal(), key));
  }
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"}) {
    Variant v(kLlama);
    v.config.erase(key);
    CHECK(contains(v.refusal(), key));
  }
}

TEST_CASE("llama: every way hub files say the same gives the same bits") {
  const auto logits = [](const Variant& v) { return v.load()->forward(kFloat, ids_of(kLlama)); };
  const Tensor want = load_model(kLlama)->forward(kFloat, ids_of(kLlama));
  SUBCASE("older keys, and values that are defaults") {
    Variant v(kLlama);
    json& rope = v.config["rope_parameters"];
    v.config["rope_theta"] = rope["rope_theta"];
    rope.erase("rope_theta");
    v.config["rope_scaling"] = rope;
    for (const char* key : {"rope_parameters", "attention_bias", "mlp_bias", "tie_word_embeddings", "pretraining_tp"})
      v.config.erase(key);
    CHECK(same_bits(logits(v), want));
    v.config["torch_dtype"] = "bfloat16";
    v.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor({4});
    CHECK(same_bits(logits(v), want));
    v.config["rope_scaling"]["type"] = v.config["rope_scaling"]["rope_type"];
    v.config["rope_scaling"].erase("rope_type");
    CHECK(same_bits(logits(v), want));
    v.config.erase("rope_scaling");
    CHECK_FALSE(same_bits(logits(v), want));
  }
  SUBCASE("no prefix") {
    Variant v(kLlama);
    std::vector<std::string> names;
    for (const auto& entry : v.tensors) names.push_back(entry.first);
    for (const auto& name : names)
      if (name != "lm_head.weight") v.rename(name, name.substr(6));
    CHECK(same_bits(logits(v), want));
  }
  SUBCASE("tied, under either name") {
    Variant v(kQwen2);
    const Tensor tied = v.load()->forward(kFloat, ids_of(kQwen2));
    v.rename("model.embed_tokens.weight", "lm_head.weight");
    CHECK(same_bits(v.load()->forward(kFloat, ids_of(kQwen2)), tied));
    v.tensors["model.embed_tokens.weight"] = v.tensors["lm_head.weight"];
    v.config["tie_word_embeddings"] = false;
    CHECK(same_bits(v.load()->forward(kFloat, ids_of(kQwen2)), tied));
    CHECK(v.load()->info().parameters == load_model(kQwen2)->info().parameters + 53 * 16);
  }
  SUBCASE("an architecture whose parts are those of LLaMA") {
    Variant v(kMistral);
    v.config["model_type"] = "llama";
    CHECK(same_bits(v.load()->forward(kFloat, ids_of(kMistral)),
                    load_model(kMistral)->forward(kFloat, ids_of(kMistral))));
  }
}

TEST_CASE("mistral, qwen: a text is at most as long as the window of a block") {
  const auto longest = [](const Variant& v) {
    const auto model = v.load();
    CHECK(model->info().notes.size() == (model->info().max_length < 24));
    return model->info().max_length;
  };
  Variant mistral(kMistral);
  for (const auto& [window, length] : {std::pair<json, int64_t>{nullptr, 24}, {4096, 24}, {24, 24}, {9, 9}}) {
    mistral.config["sliding_window"] = window;
    CHECK(longest(mistral) == length);
  }
  CHECK_THROWS_AS(mistral.load()->forward(kFloat, ids_of(kMistral)), InputError);  // 11 tokens
  mistral.config.erase("sliding_window");                                          // 4096
  mistral.config["max_position_embeddings"] = 5000;
  CHECK(mistral.load()->info().max_length == 4096);

  Variant qwen(kQwen3);
  qwen.config["sliding_window"] = 9;
  CHECK(longest(qwen) == 24);
  qwen.config["use_sliding_window"] = true;
  CHECK(longest(qwen) == 24);  // layer_types
  qwen.config["layer_types"][1] = "sliding_attention";
  CHECK(longest(qwen) == 9);
  qwen.config.erase("layer_types");
  CHECK(longest(qwen) == 24);
  qwen.config["max_window_layers"] = 1;
  CHECK(longest(qwen) == 9);
}

TEST_CASE("bloom: the slopes of ALiBi") {
  const std::vector<float> sixteen = alibi_slopes(16), twelve = alibi_slopes(12), ten = alibi_slopes(10);
  CHECK(sixteen.size() == 16);
  CHECK(sixteen[0] == doctest::Approx(0.7071068));
  CHECK(sixteen[15] == 0.00390625f);
  CHECK(twelve.size() == 12);
  CHECK(twelve[0] == 0.5f);
  CHECK(twelve[7] == 0.00390625f);
  for (size_t i = 0; i < 4; ++i) CHECK(twelve[8 + i] == doctest::Approx(std::pow(2.0, -0.5 - static_cast<double>(i))));
  CHECK(ten == std::vector<float>(twelve.begin(), twelve.begin() + 10));
  CHECK(alibi_slopes(1) == std::vector<float>{0.00390625f});
}

TEST_CASE("opt: every way hub files name the tensors gives the same bits") {
  const Tensor want = load_model(kOpt)->forward(kFloat, opt_batch());
  const std::string embed = "model.decoder.embed_tokens.weight";

  SUBCASE("decoder. instead of model.decoder.") {
    Variant v(kOpt);
    std::vector<std::string> names;
    for (const auto& entry : v.tensors) names.push_back(entry.first);
    for (const auto& name : names) v.rename(name, name.substr(6));
    CHECK(same_bits(v.load()->forward(kFloat, opt_batch()), want));
  }
  SUBCASE("the embedding under lm_head alone") {
    Variant v(kOpt);
    v.rename(embed, "lm_head.weight");
    CHECK(same_bits(v.load()->forward(kFloat, opt_batch()), want));
    CHECK(v.load()->info().parameters == opt_parameters(16, 2, 40, 53, 24));
  }
  SUBCASE("under both names") {
    Variant v(kOpt);
    v.tensors["lm_head.weight"] = v.tensors[embed].clone();
    CHECK(same_bits(v.load()->forward(kFloat, opt_batch()), want));
    CHECK(v.load()->info().parameters == opt_parameters(16, 2, 40, 53, 24));
    v.tensors["lm_head.weight"][7] += 0.25f;
    CHECK(contains(v.refusal(), "lm_head.weight"));
    CHECK(contains(v.refusal(), embed));
  }
  SUBCASE("under an alias the metadata gives") {
    Variant v(kOpt);
    v.rename(embed, "a.shared.weight");
    CHECK(same_bits(v.load(false, {{"format", "pt"}, {embed, "a.shared.weight"}})->forward(kFloat, opt_batch()), want));
    CHECK(contains(v.refusal(), embed));
  }
  SUBCASE("no OPT names at all") {
    Variant v(kVit);
    v.config = read_json(kOpt + "/config.json");
    CHECK(contains(v.refusal(), "embed_positions"));
  }
}

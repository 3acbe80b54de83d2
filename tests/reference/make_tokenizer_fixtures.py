"""Make tests/fixtures/tokenizer/: small tokenizers of bytes and of characters, an odd text, and its ids.

    python tests/reference/make_tokenizer_fixtures.py [../shared/data]    (from the repository root)

A byte-level BPE of a few hundred merges is trained on generated text and stored in every
layout that is read. ids.json holds the ids of odd.txt under each, by the tokenizers library;
shared.json the count and FNV-1a hash of the ids of real texts under GPT-2's files, for the
machines that have them.
"""
import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

OUT = Path("tests/fixtures/tokenizer")
BLOOM_PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"
ODD = (
    "It's 3.14, we're (really) DON'T!\na\n\n\nb  c\n\n = = Career = = \nxéy 你好 2023年\n"
    "no <unk> N $ 1,000 million </s>tail<pad> <pad>  \t</s> x<s>y\n"
    " \u00a0nbsp\u00a0\u00a0 two\u2003em\u3000ideo\u0085next\u180emongol\u200bzero\u2028line\u001cfs\u001fus\n"
    "I'll you'd they've 'twas ''s 'S'LL \u2019s l\u2019amour\n"
    "٣٤ ⅧⅨ ½¾ x²y³ ①② 𝟘𝟙 𞥐 \U00010d41\U0001ccf1\n"
    "ñ n\u0303 Å A\u030a ﬁ ß ſ İı ǅ ªº ʰ ๆ हिन्दी। اردو۔ ، עִברִית ไทย ქართული ᏣᎳᎩ 𐐀𐐨 \U000323af\U0002ebf0\U00016100 ꟋꟌ\n"
    "👩\u200d👩\u200d👧 👍🏽 🇩🇪 ☂\ufe0f e\u0301\u0301\u0301 \ufeffbom \ufffd\uffff\U0010ffff\u0378\n"
    "…wait…what。是，的、了！？ (a|b) [c].d,e!f?g ((h)) || i . j\r\nk\rl\t\tm   \n"
    "I'LL 'Sa '\u017f '\u017fx 1234567 12 1a2b3c  \n \n\n x\r\n\r\n  ...\n\n[ADD]\u2581a \u2581\u2581 b<LONG> c<s> d\n"
    "aaaaaaaaaaaaaaaaaaaaaaaaa thethethethe [ADD] [ADD]x x[ADD] word[ADD]word  <L>  l <R>  r <L><R> "
    "<LONG><LONGER> [W]a [W] \u3000[W]\u3000_[W] é[W] [LOW][low]\n"
    "\x00\x01\x7f\x80\xad end   "
)


def fnv(values):
    h = 0xCBF29CE484222325
    for v in values:
        for b in int(v).to_bytes(4, "little"):
            h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def training_text():
    """Invented words with a long tail, sentences with punctuation, digits and some accents."""
    rng = random.Random(1)
    syllables = [a + b for a in "b c d f g h l m n p r s t th w".split() for b in "a e i o u er an in".split()]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    words += ["the", "né", "über", "don't", "we're"]
    weights = [1.0 / (i + 1) for i in range(len(words))]
    for _ in range(3000):
        line = rng.choices(words, weights, k=rng.randint(4, 12))
        if rng.random() < 0.3:
            line.append(str(rng.randint(0, 3000)))
        yield " ".join(line).capitalize() + rng.choice([".", ",", "!", " = =", "\n\n"])


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())


def added(token_id, content, **flags):
    base = {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}
    return dict(base, **flags)


def byte_level(prefix, regex):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def variants(base):
    """(name, tokenizer.json tree)"""
    specials = [added(0, "<s>"), added(1, "<pad>"), added(2, "</s>"), added(3, "<unk>")]
    plain = dict(base, added_tokens=[])
    yield "plain", plain
    split = {"type": "Split", "pattern": {"Regex": BLOOM_PATTERN}, "behavior": "Isolated", "invert": False}
    yield "bloom", dict(base, added_tokens=specials, post_processor=byte_level(True, False),
                        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level(False, False)]})
    template = {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "<pad>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
                                   "<pad>": {"id": "<pad>", "ids": [1], "tokens": ["<pad>"]}}}
    flagged = [added(500, "[ADD]", special=False), added(501, "<L>", lstrip=True), added(502, "<R>", rstrip=True),
               added(503, "<LONG>", normalized=True, special=False),
               added(504, "<LONG><LONG", normalized=True, special=False),
               added(505, "[W]", single_word=True), added(506, "ER>", special=False),
               added(507, "[LOW]", normalized=True, lstrip=True, rstrip=True, special=False)]
    model = dict(base["model"], ignore_merges=True,
                 merges=[m if isinstance(m, str) else " ".join(m) for m in base["model"]["merges"]])
    yield "added", dict(base, added_tokens=specials + flagged, pre_tokenizer=byte_level(True, True), model=model,
                        post_processor={"type": "Sequence", "processors": [byte_level(True, True), template]})


# What Llama 3's and Qwen2's tokenizers split at.
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                  r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")


def first_token(token, token_id):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}}}


def byte_level_llama(base):
    """(name, tree) in the forms of Llama 3 and Qwen2."""
    specials = [added(0, "<s>"), added(1, "<pad>"), added(2, "</s>"), added(500, "[ADD]", special=False)]
    for name, pattern in (("llama3", LLAMA3_PATTERN), ("qwen2", QWEN2_PATTERN)):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        tree = dict(base, added_tokens=specials, model=dict(base["model"], ignore_merges=name == "llama3"),
                    pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level(False, False)]},
                    post_processor=byte_level(True, False))
        if name == "llama3":
            tree["post_processor"] = {"type": "Sequence", "processors": [byte_level(True, False), first_token("<s>", 0)]}
        else:
            tree["normalizer"] = {"type": "NFC"}
        yield name, tree


def sentencepiece(texts=None, vocab_size=300):
    """(name, tree) in the forms of Llama 2: spaces become part of words by a normalizer, or by a pre-tokenizer, which
    puts one first or before every stretch of text; bytes for characters without a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.train_from_iterator(texts or training_text(), trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + sorted(trained["vocab"], key=trained["vocab"].get)
    space = "\u2581"
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
             "vocab": {token: i for i, token in enumerate(vocab)},
             "merges": [m if isinstance(m, str) else " ".join(m) for m in trained["merges"]]}
    decoder = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(len(vocab), "[ADD]", special=False),
              added(len(vocab) + 1, "<LONG>", normalized=True, special=False)]
    tree = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None,
            "pre_tokenizer": None, "post_processor": first_token("<s>", 1), "decoder": decoder, "model": model}
    steps = [{"type": "Prepend", "prepend": space}, {"type": "Replace", "pattern": {"String": " "}, "content": space}]
    yield "llama2", dict(tree, normalizer={"type": "Sequence", "normalizers": steps})
    metaspace = {"type": "Metaspace", "replacement": space, "prepend_scheme": "first", "split": False}
    yield "metaspace", dict(tree, pre_tokenizer=metaspace)
    no_bytes = dict(model, vocab={"none" if t == "<0xE2>" else t: i for t, i in model["vocab"].items()})  # unknown ones
    yield "metaspace_split", dict(tree, model=no_bytes, pre_tokenizer=dict(metaspace, prepend_scheme="always", split=True))


def legacy(base):
    """vocab.json and merges.txt as an OPT model ships them."""
    folder = OUT / "legacy"
    folder.mkdir(exist_ok=True)
    pairs = [m if isinstance(m, str) else " ".join(m) for m in base["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(base["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(p + "\n" for p in pairs), encoding="utf-8")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    roles = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    config = {k: dict(flags, content=v, __type="AddedToken") for k, v in roles.items()}
    config.update(errors="replace", add_prefix_space=False, add_bos_token=True, tokenizer_class="GPT2Tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    special = {k: dict(flags, content=v) for k, v in roles.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
    return GPT2Tokenizer.from_pretrained(folder).backend_tokenizer


def shared_hashes(data):
    import shutil
    import tempfile
    with tempfile.TemporaryDirectory() as tmp:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(data / "tokenizer" / f"gpt2-{name}", Path(tmp, name))
        tokenizer = GPT2Tokenizer.from_pretrained(tmp).backend_tokenizer
    result = {}
    for path in sorted((data / "text").glob("*")):
        ids = tokenizer.encode(path.read_bytes().decode("utf-8")).ids
        result[path.name] = {"count": len(ids), "fnv": fnv(ids)}
    return result


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "odd.txt").write_bytes(ODD.encode("utf-8"))
    base = train()
    record = {}
    for name, tree in [*variants(base), *byte_level_llama(base), *sentencepiece()]:
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        text = json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n"
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        record[name] = Tokenizer.from_str(text).encode(ODD).ids
    record["legacy"] = legacy(base).encode(ODD).ids
    (OUT / "ids.json").write_text(json.dumps(record) + "\n")
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    if (data / "text").is_dir():
        (OUT / "shared.json").write_text(json.dumps(shared_hashes(data), indent=1) + "\n")


if __name__ == "__main__":
    main()

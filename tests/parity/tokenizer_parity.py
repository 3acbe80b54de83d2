"""Compare token ids with the Hugging Face tokenizers library on real text, in one line.

Tokenizers: GPT-2's files, the same as an OPT model ships them (two files, and tokenizer.json
as transformers saves it), GPT-2's merges behind BLOOM's split pattern, and a byte-level BPE
trained behind that pattern on the texts at hand. Texts: every file of the data folder, those
of --texts, the odd-Unicode fixture, every code point, random strings. Target: 0.
"""
import argparse
import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

BLOOM_PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def train_bloom(folder, files):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(BLOOM_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train([str(f) for f in files], trainers.BpeTrainer(
        vocab_size=20000, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def make_tokenizers(tmp, vocab, merges, files):
    """Yield (name, directory, function from text to ids)."""
    gpt2, opt, saved, bloom, trained = (Path(tmp, n) for n in ("gpt2", "opt", "opt_saved", "bloom", "bloom_trained"))
    for d in (gpt2, opt, saved, bloom, trained):
        d.mkdir()
    shutil.copy(vocab, gpt2 / "vocab.json")
    for d in (gpt2, opt):
        shutil.copy(merges, d / "merges.txt")
    ids = json.loads((gpt2 / "vocab.json").read_text(encoding="utf-8"))
    shifted = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for token in sorted(ids, key=ids.get):
        if token != "<|endoftext|>":
            shifted[token] = len(shifted)
    (opt / "vocab.json").write_text(json.dumps(shifted), encoding="utf-8")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "__type": "AddedToken"}
    special = {k: dict(flags, content=v) for k, v in
               {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}.items()}
    config = dict(special, add_prefix_space=False, add_bos_token=True, tokenizer_class="GPT2Tokenizer")
    (opt / "tokenizer_config.json").write_text(json.dumps(config))

    reference = GPT2Tokenizer.from_pretrained(gpt2)
    yield "gpt2", gpt2, lambda text: reference.backend_tokenizer.encode(text).ids
    opt_reference = GPT2Tokenizer.from_pretrained(opt)
    yield "opt", opt, lambda text: opt_reference.backend_tokenizer.encode(text).ids
    opt_reference.save_pretrained(saved)
    saved_reference = Tokenizer.from_file(str(saved / "tokenizer.json"))
    yield "opt_saved", saved, lambda text: saved_reference.encode(text).ids

    tree = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    tree["added_tokens"] = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False, "special": True} for t, i in
                            (("<s>", 0), ("<pad>", 1), ("</s>", 2), ("<unk>", 3))]
    split = {"type": "Split", "pattern": {"Regex": BLOOM_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    tree["post_processor"] = byte_level
    (bloom / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    bloom_reference = Tokenizer.from_file(str(bloom / "tokenizer.json"))
    yield "bloom", bloom, lambda text: bloom_reference.encode(text).ids
    trained_reference = train_bloom(trained, files)
    yield "bloom_trained", trained, lambda text: trained_reference.encode(text).ids


def code_point_texts(step=32768):
    """Every code point of the planes in use (every 64th of the others) between letters, digits,
    spaces and punctuation, so that its class shows; in parts, since the reference is hungry."""
    used = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x40000 or c >> 16 == 14 or c % 64 == 0)]
    for i in range(0, len(used), step):
        yield "".join(f"a{c}b 1{c}2 {c} .{c}.\n" for c in map(chr, used[i:i + step]))


def random_text(count):
    rng = random.Random(7)
    alphabet = list(" \t\n\r'aZ9.,!?<>|()[]-_s/") + [
        "'s", "'ll", "  ", "</s>", "<pad>", "<unk>", "é", "e\u0301", "你", "年", "\u00a0", "\u2003", "\u3000", "\u0085",
        "\u180e", "\u200b", "٣", "Ⅷ", "½", "…", "。", "،", "😀", "👩\u200d👩", "\U000323af"]
    return "".join(rng.choice(alphabet) for _ in range(count))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", default="build/bin/parity/dump_ids")
    parser.add_argument("--data", default="../shared/data", help="folder that holds text/ and tokenizer/")
    parser.add_argument("--texts", nargs="*", default=[], help="further text files, multilingual ones say")
    parser.add_argument("--odd", default="tests/fixtures/tokenizer/odd.txt")
    args = parser.parse_args()
    vocab, merges = (Path(args.data, "tokenizer", n) for n in ("gpt2-vocab.json", "gpt2-merges.txt"))
    if not vocab.exists():
        print(f"tokenizer_parity: skipped, no {vocab}")
        return 0
    differing = total = texts = 0
    notes = []
    with tempfile.TemporaryDirectory() as tmp:
        made = {"random": random_text(400000)}
        made.update((f"code points {i}", text) for i, text in enumerate(code_point_texts()))
        files = sorted(Path(args.data, "text").glob("*")) + [Path(f) for f in args.texts] + [Path(args.odd)]
        real = list(files)
        for name, text in made.items():
            files.append(Path(tmp, name + ".txt"))
            files[-1].write_bytes(text.encode())
        for name, directory, encode in make_tokenizers(tmp, vocab, merges, real):
            for path in files:
                out = Path(tmp, "ids")
                subprocess.run([args.tool, directory, f"plain={path}", out], check=True)
                ours = np.fromfile(out, np.int32)
                theirs = np.array(encode(path.read_bytes().decode("utf-8")), np.int32)
                same = min(len(ours), len(theirs))
                bad = int((ours[:same] != theirs[:same]).sum()) + abs(len(ours) - len(theirs))
                if bad:
                    notes.append(f"{name}/{path.name}: {bad} of {len(theirs)}")
                differing, total, texts = differing + bad, total + len(theirs), texts + 1
    print(f"tokenizer_parity: {differing} of {total} ids differ ({texts} text and tokenizer pairs)"
          + "".join("; " + n for n in notes))
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())

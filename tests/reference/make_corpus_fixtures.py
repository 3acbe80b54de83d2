"""Make tests/fixtures/corpus/: small corpora in the forms people have, and the token windows taken from them.

    python tests/reference/make_corpus_fixtures.py          (from the repository root)

The windows follow the description of the published loaders (rows, joins, random.seed and random.randint), with Python's
own file reading and random numbers, json, gzip, and the tokenizers library.
"""
import gzip
import json
import random
from pathlib import Path

from make_tokenizer_fixtures import fnv, training_text
from tokenizers import Tokenizer
from transformers import GPT2Tokenizer

OUT = Path("tests/fixtures/corpus")
LENGTH = 16
# Blank for Python's str.strip are more characters than for Unicode; not all end a line.
ODD_LINES = [" \n", "\u00a0\u3000 \n", "\x1c \x1f\n", "\r\n", " \u2028 inner\x85 \u2028 \n", "a\x1cb\x0bc\n", "\ttab \n",
             "old mac\rline\r\n", "\n", " = Title <unk> = \n"]


def encoder(name):
    folder = Path("tests/fixtures/tokenizer", name)
    if name == "legacy":
        backend = GPT2Tokenizer.from_pretrained(folder).backend_tokenizer
    else:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: backend.encode(text).ids


def write_files():
    OUT.mkdir(parents=True, exist_ok=True)
    sentences = [s.rstrip("\n") for s in training_text()][:300]
    rng = random.Random(5)
    wiki = "".join((rng.choice(ODD_LINES) if i % 4 == 0 else f" {s} \n") for i, s in enumerate(sentences[:80]))
    (OUT / "wiki.test.raw").write_bytes(wiki.encode("utf-8") + b" no end of line")
    ptb = "".join(f" {s.lower().replace('a', '<unk>', 1)} \n" for s in sentences[80:140])
    (OUT / "ptb.valid.txt").write_bytes(ptb.encode("utf-8"))
    lines = []
    for i in range(24):
        # the last three: few words, many, and characters that JSON escapes
        body = " ".join(rng.choices(sentences, k=rng.choice([1, 1, 2, 3]))) if i < 21 else ["né", "b c " * 40, "\"\\/\u2028😀\x00é\n\t" * 4][i - 21]
        lines.append(json.dumps({"text": body, "timestamp": "2019-04-25T12:57:54Z", "url": f"http://e.x/{i}"},
                                ensure_ascii=i % 2 == 0) + "\n" + ("\n" if i == 7 else ""))
    halves = ["".join(lines[:10]), "".join(lines[10:])]
    # gzip files may have several members; zlib's and Python's readers join them
    (OUT / "c4.json.gz").write_bytes(b"".join(gzip.compress(h.encode("utf-8"), mtime=0) for h in halves))


def wikitext_rows():
    with open(OUT / "wiki.test.raw", encoding="utf-8") as f:
        return [row if row.strip() else "" for row in f]


def ptb_rows():
    with open(OUT / "ptb.valid.txt", encoding="utf-8") as f:
        return [row.strip() for row in f]


def documents():
    with gzip.open(OUT / "c4.json.gz", "rt", encoding="utf-8") as f:
        return [json.loads(row)["text"] for row in f if row.strip()]


def crops_of_text(ids, count, seed):
    random.seed(seed)
    starts = [random.randint(0, len(ids) - LENGTH - 1) for _ in range(count)]
    return [t for s in starts for t in ids[s:s + LENGTH]]


def crops_of_documents(docs, encode, count, seed):
    random.seed(seed)
    out = []
    for _ in range(count):
        while True:
            ids = encode(docs[random.randint(0, len(docs) - 1)])
            if len(ids) > LENGTH:  # the loaders say >=, and stop with an error at equality
                break
        s = random.randint(0, len(ids) - LENGTH - 1)
        out += ids[s:s + LENGTH]
    return out


def facts(ids):
    return {"count": len(ids), "fnv": fnv(ids), "first": ids[:8], "last": ids[-8:]}


def main():
    write_files()
    docs = documents()
    record = {"length": LENGTH}
    for name in ("legacy", "bloom"):
        encode = encoder(name)
        evaluation = {"wikitext2": encode("\n\n".join(wikitext_rows())), "ptb": encode("\n\n".join(ptb_rows())),
                      "ptb-new": encode(" ".join(ptb_rows())), "c4": crops_of_documents(docs, encode, 256, 0),
                      "c4-new": encode(" ".join(docs[:1100]))[:256 * LENGTH]}
        record[name] = {"evaluation": {k: facts(v) for k, v in evaluation.items()}, "calibration": {}}
        for seed in (0, 3):
            for k, ids in evaluation.items():
                crops = crops_of_documents(docs, encode, 8, seed) if "c4" in k else crops_of_text(ids, 8, seed)
                record[name]["calibration"][f"{k} {seed}"] = facts(crops)
    (OUT / "windows.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Make tests/fixtures/mini.json: what transformers and the tokenizers library make of the embedded language models.

    python tests/reference/make_mini_fixture.py    (from the repository root)

For each: the count and FNV-1a hash of the ids of data/mini/text/test.txt, and the mean loss of each of its first
windows of 256 tokens, computed in double precision.
"""
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from make_tokenizer_fixtures import fnv

MINI, WINDOW, WINDOWS = Path("data/mini"), 256, 4


@torch.no_grad()
def facts(name):
    text = (MINI / "text/test.txt").read_bytes().decode()
    ids = Tokenizer.from_file(str(MINI / name / "tokenizer.json")).encode(text).ids
    model = AutoModelForCausalLM.from_pretrained(MINI / name, dtype=torch.float64).eval()
    windows = torch.tensor(ids[:WINDOWS * WINDOW]).view(WINDOWS, WINDOW)
    logits = model(windows, use_cache=False).logits
    losses = [torch.nn.functional.cross_entropy(z[:-1], w[1:]).item() for z, w in zip(logits, windows)]
    return {"tokens": len(ids), "fnv": fnv(ids), "losses": losses}


if __name__ == "__main__":
    record = {name: facts(name) for name in ("opt", "bloom", "llama")}
    Path("tests/fixtures/mini.json").write_text(json.dumps(record, indent=1) + "\n")

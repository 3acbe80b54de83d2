# Writes tests/fixtures/generate.json: what transformers' generate() adds, greedily, to prompts of the language networks
# in tests/fixtures. From the root:
#   build/reference/bin/python tests/reference/make_generate_fixtures.py
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"

if __name__ == "__main__":
    cases = []
    for folder in ("opt_tiny", "opt_post_tiny", "opt_plain_tiny", "bloom_tiny", "bloom_residual_tiny", "llama_tiny",
                   "llama_bias_tiny", "mistral_tiny", "qwen2_tiny", "qwen3_tiny"):
        model = AutoModelForCausalLM.from_pretrained(FIXTURES / folder, dtype=torch.float32).eval()
        for seed, length in enumerate((1, 4, 11)):
            prompt = torch.randint(3, 53, (1, length), generator=torch.Generator().manual_seed(seed))
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
            cases.append({"model": folder, "prompt": prompt[0].tolist(), "ids": out[0, length:].tolist()})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (FIXTURES / "generate.json").write_text(f"[\n{lines}\n]\n")

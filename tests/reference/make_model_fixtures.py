# Writes tests/fixtures/vit_tiny and tests/fixtures/opt_tiny: small networks with random
# weights, an input, and what timm and transformers compute from it. From the root:
#   build/reference/bin/python tests/reference/make_model_fixtures.py
from pathlib import Path

import torch
from safetensors.torch import save_file

import networks

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def save(tensors, path):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    assert path.stat().st_size < 150_000, path


def make_vit():
    architecture = "vit_tiny_patch16_224"
    args = dict(img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.5)
    model = networks.vit(architecture, seed=1, num_classes=7, **args)
    networks.write_vit(model, FIXTURES / "vit_tiny", architecture, **args)
    g = torch.Generator().manual_seed(2)
    pixels, grad = torch.randn(2, 3, 12, 12, generator=g), torch.randn(2, 7, generator=g)
    save({"pixel_values": pixels, "grad_logits": grad, **networks.run_vit(model, pixels, grad)},
         FIXTURES / "vit_tiny" / "reference.safetensors")


def make_opt():
    config = networks.opt_config(vocab_size=53, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2,
                                 num_attention_heads=2, ffn_dim=40, max_position_embeddings=24)
    model = networks.opt(config, seed=3)
    networks.write_opt(model, FIXTURES / "opt_tiny")
    ids = torch.randint(0, 53, (2, 11), generator=torch.Generator().manual_seed(4))
    save({"input_ids": ids, **networks.run_opt(model, ids)}, FIXTURES / "opt_tiny" / "reference.safetensors")


if __name__ == "__main__":
    make_vit()
    make_opt()

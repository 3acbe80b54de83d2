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


def make_vision(folder, architecture, seed, side, **args):
    model = networks.vision(architecture, seed=seed, num_classes=7, **args)
    networks.write_vision(model, FIXTURES / folder, architecture, **args)
    g = torch.Generator().manual_seed(seed + 1)
    pixels, grad = torch.randn(2, 3, side, side, generator=g), torch.randn(2, 7, generator=g)
    save({"pixel_values": pixels, "grad_logits": grad, **networks.run_vision(model, pixels, grad)},
         FIXTURES / folder / "reference.safetensors")


def make_transformers(folder, kind, seed, side, **sizes):
    model = networks.transformers_vision(kind, seed, image_size=side, num_labels=7, **sizes)
    networks.write_transformers(model, FIXTURES / folder)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        save({"pixel_values": pixels, "logits": model(pixels).logits}, FIXTURES / folder / "reference.safetensors")


def make_opt():
    config = networks.opt_config(vocab_size=53, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2,
                                 num_attention_heads=2, ffn_dim=40, max_position_embeddings=24)
    model = networks.opt(config, seed=3)
    networks.write_opt(model, FIXTURES / "opt_tiny")
    ids = torch.randint(0, 53, (2, 11), generator=torch.Generator().manual_seed(4))
    save({"input_ids": ids, **networks.run_opt(model, ids)}, FIXTURES / "opt_tiny" / "reference.safetensors")


if __name__ == "__main__":
    make_vision("vit_tiny", "vit_tiny_patch16_224", 1, 12, img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=3,
                mlp_ratio=2.5)
    make_vision("deit_tiny", "deit_tiny_distilled_patch16_224", 5, 12, img_size=12, patch_size=4, embed_dim=24, depth=1,
                num_heads=3, mlp_ratio=2)
    # Two stages, the first with shifted windows, the second with one window that covers the grid.
    make_vision("swin_tiny", "swin_tiny_patch4_window7_224", 7, 12, img_size=12, patch_size=2, window_size=3,
                embed_dim=8, depths=[2, 1], num_heads=[2, 4], mlp_ratio=2.0)
    encoder = dict(patch_size=4, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40)
    make_transformers("vit_hf", "vit", 9, 12, **encoder)
    make_transformers("deit_hf", "deit", 11, 12, **encoder)
    make_transformers("swin_hf", "swin", 13, 12, patch_size=2, window_size=3, embed_dim=12, depths=[2, 1],
                      num_heads=[2, 3], mlp_ratio=2.0)
    make_opt()

# Writes the networks of tests/fixtures: small, with random weights, an input, and what timm and
# transformers compute from it. From the root:
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


def make_language(folder, kind, seed, hidden_size=16, **sizes):
    model = networks.language(kind, seed, vocab_size=53, hidden_size=hidden_size, **sizes)
    networks.write_language(model, FIXTURES / folder)
    ids = torch.randint(0, 53, (2, 11), generator=torch.Generator().manual_seed(seed + 1))
    save({"input_ids": ids, **networks.run_language(model, ids)}, FIXTURES / folder / "reference.safetensors")


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
    decoder = dict(num_hidden_layers=2, num_attention_heads=2, ffn_dim=40, max_position_embeddings=24)
    make_language("opt_tiny", "opt", 3, word_embed_proj_dim=16, **decoder)
    # As the 350M: norms after the sums, a narrower embedding. As Galactica: no biases, plain norms, GELU.
    make_language("opt_post_tiny", "opt", 15, word_embed_proj_dim=12, do_layer_norm_before=False, **decoder)
    make_language("opt_plain_tiny", "opt", 17, word_embed_proj_dim=16, enable_bias=False,
                  layer_norm_elementwise_affine=False, activation_function="gelu", **decoder)
    # Head counts that are and are not a power of two.
    make_language("bloom_tiny", "bloom", 19, n_layer=2, n_head=4)
    make_language("bloom_residual_tiny", "bloom", 21, n_layer=1, n_head=6, hidden_size=24,
                  apply_residual_connection_post_layernorm=True)

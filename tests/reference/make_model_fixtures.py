# Writes the networks of tests/fixtures: small, with random weights, an input, and what timm and
# transformers compute from it. From the root:
#   build/reference/bin/python tests/reference/make_model_fixtures.py
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

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


def make_options():
    """vit_options: what timm's VisionTransformer and transformers' Dinov2 can be configured to, each a network of one
    block with its pixels (6 x 6) and logits; tensors "CASE/NAME", configurations by case."""
    cases, tensors = {}, {}
    small = dict(img_size=6, patch_size=2, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2)
    pixels = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))

    def add(name, configs, state, model):
        with torch.no_grad():
            outputs = model(pixels)
        logits = outputs if torch.is_tensor(outputs) else outputs.get("logits", outputs.get("pooler_output"))
        cases[name] = configs
        tensors.update({f"{name}/{k}": v for k, v in state.items()} | {f"{name}/logits": logits})

    def add_timm(name, architecture, table=3, num_classes=7, **args):
        args = small | args
        model = networks.vision(architecture, len(cases) + 50, num_classes, **args | {"img_size": 2 * table})
        state = {k: v.clone() for k, v in model.state_dict().items()}
        model.set_input_size((6, 6))  # resizes the positions where their table is another
        add(name, {"config": networks.timm_config(model, architecture, **args)}, state, model)

    add_timm("deit3", "deit3_small_patch16_224")
    add_timm("dinov2", "vit_small_patch14_dinov2", table=5, num_classes=0)
    add_timm("dinov2_reg4", "vit_small_patch14_reg4_dinov2", table=2)
    add_timm("positions_from_5", "vit_base_patch16_224", table=5)
    add_timm("positions_from_2", "vit_base_patch16_224", table=2, reg_tokens=2)
    add_timm("reg4_gap", "vit_little_patch16_reg4_gap_256")
    add_timm("gap", "vit_medium_patch16_gap_256")
    add_timm("avg", "vit_base_patch16_224", global_pool="avg")
    add_timm("avg_norm_first", "vit_base_patch16_224", global_pool="avg", fc_norm=False, pool_include_prefix=True)
    add_timm("token_fc_norm", "vit_base_patch16_224", fc_norm=True, qk_norm=True, init_values=0.5)
    add_timm("clip_quickgelu", "vit_base_patch16_clip_quickgelu_224")
    add_timm("gelu_tanh", "vit_base_patch16_224", act_layer="gelu_tanh", pos_embed="none", final_norm=False)
    add_timm("no_biases", "vit_base_patch16_224", qkv_bias=False, proj_bias=False, pre_norm=True, no_embed_class=True)

    sizes = dict(patch_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2)
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 7}, "crop_size": 6,
                 "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    for kind, extra in (("dinov2", {}), ("dinov2_model", {}), ("dinov2_with_registers", {"num_register_tokens": 3})):
        labels = {} if kind == "dinov2_model" else {"num_labels": 7}
        model = networks.transformers_vision(kind, len(cases) + 50, image_size=10, **sizes, **extra, **labels)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)  # names as they are in files
            add("hf_" + kind, {"config": json.loads((Path(folder) / "config.json").read_text()),
                               "preprocessor": processor}, load_file(Path(folder) / "model.safetensors"), model)
    folder = FIXTURES / "vit_options"
    folder.mkdir(exist_ok=True)
    save(tensors | {"pixel_values": pixels}, folder / "networks.safetensors")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    (folder / "cases.json").write_text("{" + lines + "}\n")


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
    make_options()
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
    # Fewer heads of keys and values, heads that are together wider than the network, frequencies of which one is as
    # trained, one between, two slowed down; a head of its own.
    llama = dict(num_hidden_layers=2, intermediate_size=40, max_position_embeddings=24)
    make_language("llama_tiny", "llama", 23, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
                  rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, **llama)
    # With every bias there may be, of widths that GPTQ's format takes.
    make_language("llama_bias_tiny", "llama", 25, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                  num_attention_heads=4, attention_bias=True, mlp_bias=True, max_position_embeddings=24,
                  tie_word_embeddings=True)
    make_language("mistral_tiny", "mistral", 27, num_attention_heads=2, num_key_value_heads=1, sliding_window=None,
                  rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}, **llama)
    make_language("qwen2_tiny", "qwen2", 29, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
                  **llama)
    make_language("qwen3_tiny", "qwen3", 31, num_attention_heads=4, num_key_value_heads=2, head_dim=6, **llama)

# The reference networks: timm's ViT, DeiT and Swin and transformers' ViT, DeiT, Swin, OPT, BLOOM, LLaMA, Mistral, Qwen2
# and Qwen3 with random weights of realistic size, written as the hub's repositories are laid out, and run with every
# product, block output and gradient recorded. Names of what is recorded:
#   embed, block.<i>, site.<site>, grad.<site>, logits
import json
import math
import types
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from transformers import (BloomConfig, BloomForCausalLM, DeiTConfig, DeiTForImageClassificationWithTeacher, Dinov2Config,
                          Dinov2ForImageClassification, Dinov2Model, Dinov2WithRegistersConfig,
                          Dinov2WithRegistersForImageClassification, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM, SwinConfig, SwinForImageClassification, ViTConfig,
                          ViTForImageClassification)
from transformers.utils import logging

logging.disable_progress_bar()


def perturb(model, seed):
    """Norms and biases away from 1 and 0, as in a trained network; everything else as initialised."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        with torch.no_grad():
            if "norm" in name or ".ln_" in name:
                p.copy_((1 if name.endswith("weight") else 0) + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif any(k in name for k in ("pos_embed", "position", "cls_token", "dist_token", "distillation_token")):
                p.copy_(0.3 * noise)
            elif "embed" not in name:  # weights of linear layers: outputs as large as their inputs
                p.copy_(noise / math.sqrt(p[0].numel()))
    return model.float().eval()


def vision(architecture, seed, num_classes=1000, **model_args):
    torch.manual_seed(seed)
    return perturb(timm.create_model(architecture, pretrained=False, num_classes=num_classes, **model_args), seed)


def old_layout(state):
    """The names timm gave a Swin before 0.8: the merge at the end of a stage, the head without fc."""
    def old(name):
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        return ".".join(parts).replace("head.fc.", "head.")
    return {old(k): v for k, v in state.items()}


def timm_config(model, architecture, **model_args):
    """config.json as timm pushes it to the hub."""
    cfg = model.pretrained_cfg
    side = model.patch_embed.img_size[0]
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "pretrained_cfg": {
            "tag": "augreg_in21k_ft_in1k",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": cfg["interpolation"],
            "crop_pct": cfg["crop_pct"],
            "crop_mode": cfg["crop_mode"],
            "mean": list(cfg["mean"]),
            "std": list(cfg["std"]),
            "num_classes": model.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": cfg["classifier"],
        },
    }
    if model_args:
        config["model_args"] = model_args
    return config


def write_vision(model, folder, architecture, old=False, **model_args):
    """config.json and model.safetensors as timm pushes them to the hub."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = timm_config(model, architecture, **model_args)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = model.state_dict()
    save_file({k: v.contiguous() for k, v in (old_layout(state) if old else state).items()},
              folder / "model.safetensors", metadata={"format": "pt"})


# transformers' forms of the same networks: name -> (configuration, model)
TRANSFORMERS = {"vit": (ViTConfig, ViTForImageClassification),
                "deit": (DeiTConfig, DeiTForImageClassificationWithTeacher),
                "swin": (SwinConfig, SwinForImageClassification),
                "dinov2": (Dinov2Config, Dinov2ForImageClassification),
                "dinov2_model": (Dinov2Config, Dinov2Model),
                "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification)}


def transformers_vision(kind, seed, **sizes):
    config, model = TRANSFORMERS[kind]
    torch.manual_seed(seed)
    return perturb(model(config(**sizes)), seed)


def write_transformers(model, folder):
    model.save_pretrained(folder)
    processor = {"do_resize": True, "size": {"height": model.config.image_size, "width": model.config.image_size},
                 "do_center_crop": False, "resample": 3, "do_rescale": True, "do_normalize": True,
                 "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


# transformers' language models: name -> (configuration, model, what is fixed)
LANGUAGE = {"opt": (OPTConfig, OPTForCausalLM, dict(dropout=0.0)),
            "bloom": (BloomConfig, BloomForCausalLM, {}),
            "llama": (LlamaConfig, LlamaForCausalLM, {}),
            "mistral": (MistralConfig, MistralForCausalLM, {}),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM, {})}


def language(kind, seed, **sizes):
    config, model, fixed = LANGUAGE[kind]
    torch.manual_seed(seed)
    return perturb(model(config(**fixed, **sizes)), seed)


def write_language(model, folder):
    """config.json and model.safetensors as transformers writes them."""
    model.save_pretrained(folder)
    (Path(folder) / "generation_config.json").unlink(missing_ok=True)


class MatMul(torch.nn.Module):
    def forward(self, a, b):
        return a @ b


def attention(self, x, attn_mask=None, is_causal=False):
    """timm's unfused attention with its two products as modules, the scale after the first (as PTQ4ViT has it)."""
    B, N, C = x.shape
    q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    a = (self.matmul1(q, k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
    return self.proj(self.matmul2(a, v).transpose(1, 2).reshape(B, N, C))


def window_attention(self, x, mask=None):
    """The same for Swin, whose scale is on q."""
    B, N, C = x.shape
    q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    a = self.matmul1(q * self.scale, k.transpose(-2, -1)) + self._get_rel_pos_bias()
    if mask is not None:
        W = mask.shape[0]
        a = (a.view(-1, W, self.num_heads, N, N) + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.num_heads, N, N)
    return self.proj(self.matmul2(a.softmax(dim=-1), v).transpose(1, 2).reshape(B, N, -1))


def parts(model):
    """The embedding, and the blocks and merges in the order they run."""
    if not hasattr(model, "layers"):
        return model.norm_pre, list(model.blocks)  # an Identity after the embedding
    order = []
    for stage in model.layers:
        order += [] if isinstance(stage.downsample, torch.nn.Identity) else [stage.downsample]
        order += list(stage.blocks)
    return model.patch_embed, order


def expose_products(model):
    """Make the products of every attention modules of their own; the result is checked against timm's."""
    for block in parts(model)[1]:
        if not hasattr(block, "attn"):
            continue
        block.attn.fused_attn = False
        block.attn.matmul1, block.attn.matmul2 = MatMul(), MatMul()
        block.attn.forward = types.MethodType(window_attention if hasattr(block, "window_size") else attention,
                                              block.attn)


def run_vision(model, pixels, grad_logits=None):
    """{name: tensor} of one forward pass and, for dL/dlogits given, of the gradient at every site."""
    with torch.no_grad():
        untouched = model(pixels)
    expose_products(model)
    record, sites = {}, {}

    def rows(name, t):
        """As the engine has it: a convolution's pixels and the cells of a grid are rows."""
        if name == "patch_embed.proj":
            return t.flatten(2).transpose(1, 2)
        is_grid = t.dim() == 4 and "matmul" not in name
        return t.flatten(1, 2) if is_grid else t

    def keep(name, is_site):
        def hook(module, inputs, output):
            output.retain_grad()
            if is_site:
                sites[name] = output
            record["site." + name if is_site else name] = rows(name, output)

        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, MatMul)):
            hooks.append(module.register_forward_hook(keep(name, True)))
    embed, order = parts(model)
    for i, part in enumerate(order):
        hooks.append(part.register_forward_hook(keep(f"block.{i}", False)))
    hooks.append(embed.register_forward_hook(keep("embed", False)))
    logits = model(pixels)
    record["logits"] = logits
    for h in hooks:
        h.remove()
    worst = ((logits - untouched).abs().max() / untouched.abs().max()).item()
    assert worst < 2e-6, f"exposing the products changed the logits by {worst}"
    if grad_logits is not None:
        logits.backward(grad_logits)
        for name, output in sites.items():
            record["grad." + name] = rows(name, output.grad)
        model.zero_grad()
    return {k: v.detach().clone().contiguous() for k, v in record.items()}


def run_language(model, ids):
    """{name: tensor} of one forward pass; sites are named without "model.decoder.", "transformer." or "model."."""
    record, hooks = {}, []
    decoder = model.model if hasattr(model, "model") else model.transformer
    decoder = getattr(decoder, "decoder", decoder)
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h

    def keep(name):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            record[name] = output.detach().reshape(*ids.shape, -1).clone().contiguous()

        return hook

    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith("project_"):
            hooks.append(module.register_forward_hook(keep("site." + name)))
    for i, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(keep(f"block.{i}")))
    hooks.append(layers[0].register_forward_pre_hook(
        lambda module, args: record.__setitem__("embed", args[0].detach().clone())))
    with torch.no_grad():
        record["logits"] = model(input_ids=ids, use_cache=False).logits.clone()
    for h in hooks:
        h.remove()
    return record

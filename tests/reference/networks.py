# The reference networks: timm's ViT and transformers' OPT with random weights of
# realistic size, written as the hub's repositories are laid out, and run with every
# product, block output and gradient recorded. Names of what is recorded:
#   embed, block.<i>, site.<site>, grad.<site>, logits
import json
import math
import types
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()


def perturb(model, seed):
    """Norms and biases away from 1 and 0, as in a trained network; everything else as initialised."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        with torch.no_grad():
            if "norm" in name:
                p.copy_((1 if name.endswith("weight") else 0) + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif "pos_embed" in name or "cls_token" in name:
                p.copy_(0.3 * noise)
            elif "embed" not in name:  # weights of linear layers: outputs as large as their inputs
                p.copy_(noise / math.sqrt(p[0].numel()))
    return model.float().eval()


def vit(architecture, seed, num_classes=1000, **model_args):
    torch.manual_seed(seed)
    return perturb(timm.create_model(architecture, pretrained=False, num_classes=num_classes, **model_args), seed)


def write_vit(model, folder, architecture, **model_args):
    """config.json and model.safetensors as timm pushes them to the hub."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cfg = model.pretrained_cfg
    side = model.patch_embed.img_size[0]
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": "token",
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
            "classifier": "head",
        },
    }
    if model_args:
        config["model_args"] = model_args
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors",
              metadata={"format": "pt"})


def opt(config, seed):
    torch.manual_seed(seed)
    return perturb(OPTForCausalLM(config), seed)


def opt_config(**sizes):
    return OPTConfig(**sizes, do_layer_norm_before=True, activation_function="relu", dropout=0.0)


def write_opt(model, folder):
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


def expose_products(model):
    """Make the products of every attention modules of their own; the result is checked against timm's."""
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.matmul1, block.attn.matmul2 = MatMul(), MatMul()
        block.attn.forward = types.MethodType(attention, block.attn)


def run_vit(model, pixels, grad_logits=None):
    """{name: tensor} of one forward pass and, for dL/dlogits given, of the gradient at every site."""
    with torch.no_grad():
        untouched = model(pixels)
    expose_products(model)
    record, sites = {}, {}

    def keep(name, is_site):
        def hook(module, inputs, output):
            output.retain_grad()
            if name == "patch_embed.proj":  # a convolution: the engine's rows are its pixels
                sites[name] = output
                record["site." + name] = output.flatten(2).transpose(1, 2)
            elif is_site:
                sites[name] = record["site." + name] = output
            else:
                record[name] = output

        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, MatMul)):
            hooks.append(module.register_forward_hook(keep(name, True)))
    for i, block in enumerate(model.blocks):
        hooks.append(block.register_forward_hook(keep(f"block.{i}", False)))
    hooks.append(model.norm_pre.register_forward_hook(keep("embed", False)))  # an Identity after the embedding
    logits = model(pixels)
    record["logits"] = logits
    for h in hooks:
        h.remove()
    worst = ((logits - untouched).abs().max() / untouched.abs().max()).item()
    assert worst < 2e-6, f"exposing the products changed the logits by {worst}"
    if grad_logits is not None:
        logits.backward(grad_logits)
        for name, output in sites.items():
            g = output.grad
            record["grad." + name] = g.flatten(2).transpose(1, 2) if name == "patch_embed.proj" else g
        model.zero_grad()
    return {k: v.detach().clone().contiguous() for k, v in record.items()}


def run_opt(model, ids):
    """{name: tensor} of one forward pass; sites are named without "model.decoder."."""
    record, hooks = {}, []
    decoder = model.model.decoder

    def keep(name, reshape=False):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            record[name] = output.detach().reshape(*ids.shape, -1).clone().contiguous()

        return hook

    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            hooks.append(module.register_forward_hook(keep("site." + name)))
    for i, layer in enumerate(decoder.layers):
        hooks.append(layer.register_forward_hook(keep(f"block.{i}")))
    hooks.append(decoder.layers[0].register_forward_pre_hook(
        lambda module, args: record.__setitem__("embed", args[0].detach().clone())))
    with torch.no_grad():
        record["logits"] = model(input_ids=ids, use_cache=False).logits.clone()
    for h in hooks:
        h.remove()
    return record

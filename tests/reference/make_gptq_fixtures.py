# Writes tests/fixtures/gptq: GPTQ checkpoints of small OPTs and a BLOOM as others write them. The words come from
# GPTQModel's own packing, the values and logits they stand for from its dequantization and from transformers.
# From the root, in the reference environment with gptqmodel==7.7.0 added:
#   build/reference/bin/python tests/reference/make_gptq_fixtures.py
import json
import shutil
from pathlib import Path

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

import networks

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "gptq"


def opt():
    return networks.language("opt", 21, vocab_size=53, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=1,
                             num_attention_heads=2, ffn_dim=64, max_position_embeddings=24)


def bloom():
    return networks.language("bloom", 22, vocab_size=53, hidden_size=32, n_layer=1, n_head=2)


def quantize(linear, bits, group, sym, desc_act, g):
    """The layer rounded to nearest on a grid with 16-bit scales: packed, and its values in float32."""
    out, columns = linear.weight.shape
    group = columns if group < 0 else group
    g_idx = torch.arange(columns, dtype=torch.int32) // group
    if desc_act:
        g_idx = g_idx[torch.randperm(columns, generator=g)].contiguous()
    top = 2**bits - 1
    scales, zeros = [], []
    for i in range(columns // group):
        w = linear.weight[:, g_idx == i]
        lo, hi = w.min(1).values.clamp(max=0), w.max(1).values.clamp(min=0)
        if sym:
            hi = torch.maximum(hi, -lo)
            lo = -hi
        s = ((hi - lo) / top).half().float()
        scales.append(s)
        zeros.append(torch.full_like(s, 2 ** (bits - 1)) if sym else (-lo / s).round().clamp(0, top))
    scales, zeros = torch.stack(scales, 1).detach(), torch.stack(zeros, 1).detach()
    s, z = scales[:, g_idx.long()], zeros[:, g_idx.long()]
    with torch.no_grad():
        linear.weight.copy_(s * ((linear.weight / s).round() + z).clamp(0, top).sub(z))
        linear.bias.copy_(linear.bias.half().float())
    packed = TorchLinear(bits=bits, group_size=group, sym=sym, desc_act=desc_act, in_features=columns, out_features=out,
                         bias=True)
    packed.pack_original(linear, scales, zeros, g_idx)
    return packed


def make(name, model, bits, group, sym, desc_act, v2, prefix=None, own_file=False, seed=1):
    folder = FOLDER / name
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    state, values = {k: v.half() for k, v in model.state_dict().items() if k != "lm_head.weight"}, {}
    for layer, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or layer == "lm_head":
            continue
        packed = quantize(module, bits, group, sym, desc_act, g)
        del state[layer + ".weight"]
        read = TorchLinear(bits=bits, group_size=group, sym=sym, desc_act=desc_act, in_features=module.in_features,
                           out_features=module.out_features, bias=True)
        read.load_state_dict({k: v.clone() for k, v in packed.state_dict().items()})
        read.scales = read.scales.float()  # 16-bit scales, products in float32
        read.post_init()
        read.eval()
        values[layer + ".weight"] = read.dequantize_weight().T.contiguous()
        if not v2:
            convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits, group_size=group, sym=sym))
        state.update({f"{layer}.{k}": v for k, v in packed.state_dict().items()})

    with torch.no_grad():  # everything else in 16 bits
        for k, p in model.named_parameters():
            p.copy_(values[k] if k in values else p.half().float())
        ids = torch.randint(0, 53, (2, 11), generator=g)
        logits = model(input_ids=ids, use_cache=False).logits
    if prefix is not None:  # without the outer name, as files of the bare model have it
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / ("gptq_model-%dbit.safetensors" % bits),
              metadata={"format": "pt"})
    short = {k.removeprefix("model.decoder.").removeprefix("transformer."): v for k, v in values.items()}
    save_file({"input_ids": ids, "logits": logits, **short}, folder / "reference.st")
    quantization = {"bits": bits, "group_size": group, "desc_act": desc_act, "sym": sym, "lm_head": False,
                    "quant_method": "gptq", "checkpoint_format": "gptq_v2" if v2 else "gptq", "pack_dtype": "int32"}
    config = json.loads(model.config.to_json_string())
    if own_file:
        (folder / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n")
    else:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    make("v1_4bit_sym_desc_act", opt(), 4, 16, True, True, v2=False)
    make("v1_3bit_row_bare_names", opt(), 3, -1, True, False, v2=False, prefix="model.", own_file=True)
    make("v2_2bit_asym", opt(), 2, 16, False, False, v2=True)
    make("v2_3bit_asym_desc_act", opt(), 3, 16, False, True, v2=True)
    make("bloom_v1_8bit", bloom(), 8, 32, True, False, v2=False, prefix="transformer.")

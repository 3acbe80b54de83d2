# GPTQ checkpoints across programs: those perplexity --save --format gptq writes, in GPTQModel and transformers; those
# GPTQModel makes, here. Weights must be equal to the last bit, logits within 1e-5 of the largest. Needs gptqmodel
# (7.7.0) and optimum beside the reference environment; says so and passes where they are absent. Loaded as float16:
# as bfloat16, GPTQModel's choice on a CPU, the scales themselves would be rounded. From the root:
#   build/reference/bin/python tests/parity/gptq_parity.py
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

if importlib.util.find_spec("gptqmodel") is None:
    print("GPTQ checkpoints: not run: gptqmodel is not installed (pip install gptqmodel==7.7.0 optimum==2.3.0)")
    sys.exit(0)

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default on two cores, 1, is fewer than it asks for
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

BIN = Path(os.environ.get("BCQ_BIN", "build/bin"))
MINIS, TEXT = ("data/mini/opt", "data/mini/llama"), "data/mini/text"
LOGITS = 1e-5
failed = []


def report(what, weights, logits):
    ok = weights == 0 and logits <= LOGITS
    print(f"{'ok    ' if ok else 'FAILED'} {what}: {weights} weights differ, logits {logits:.1e}", flush=True)
    if not ok:
        failed.append(what)


def dequantized(model):
    """The model's packed layers replaced by float32 ones: 16-bit scales, products in float32."""
    weights = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, TorchLinear):
            continue
        module.scales = module.scales.float()
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(module.dequantize_weight().T)
            if module.bias is not None:
                linear.bias.copy_(module.bias.float())
        weights[name] = linear.weight.detach().clone()
        parent, child = name.rsplit(".", 1)
        setattr(model.get_submodule(parent), child, linear)
    return torch.nn.Module.float(model).eval(), weights  # transformers' own float() refuses what was loaded packed


def compare(what, folder, model, ids):
    model, weights = dequantized(model)
    stored = {k: v for file in Path(folder).glob("*.safetensors") for k, v in load_file(file).items()}
    with torch.no_grad():
        for name, p in model.named_parameters():  # what is not packed may have more bits than it was loaded with
            if name in stored:
                p.copy_(stored[name])
        want = model(input_ids=ids, use_cache=False).logits
    with tempfile.TemporaryDirectory() as work:
        save_file({"input_ids": ids}, f"{work}/in")
        subprocess.run([BIN / "parity/dump_layers", str(folder), f"{work}/in", f"{work}/out"], check=True)
        got = load_file(f"{work}/out")
    assert weights, "no packed layer was found"
    differ = sum(int((got["weight." + n.removeprefix("model.").removeprefix("decoder.").removeprefix("transformer.")] != w).sum())
                 for n, w in weights.items())
    report(what, differ, ((got["logits"] - want).abs().max() / want.abs().max()).item())


def perplexity(*args):
    out = subprocess.run([BIN / "perplexity", *map(str, args), "--json", "-"], check=True, capture_output=True)
    return json.loads(out.stdout)["perplexity"]


def ours_there(mini, work, ids):
    forms = {"4 bit sym act-order g32": "--wbits 4 --groupsize 32 --sym --act-order",
             "3 bit asym g64": "--wbits 3 --groupsize 64", "2 bit asym act-order g32": "--wbits 2 --groupsize 32 --act-order",
             "3 bit sym": "--wbits 3 --sym", "8 bit sym g128": "--wbits 8 --groupsize 128 --sym"}
    for name, options in forms.items():
        folder = Path(work) / name.replace(" ", "-")
        evaluate = ["--text", f"{TEXT}/test.txt", "--limit", 8]
        made = perplexity("--model", mini, *evaluate, "--calib-text", f"{TEXT}/calib.txt", "--nsamples", 8, "--method",
                          "gptq", *options.split(), "--bc", "channel", "--save", folder, "--format", "gptq")
        again = perplexity("--model", folder, *evaluate)
        print(f"{'ok    ' if made == again else 'FAILED'} {name}: perplexity {made!r}, loaded again {again!r}")
        if made != again:
            failed.append(name)
        loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
        compare(f"ours in GPTQModel, {name}", folder, loaded.model, ids)
        kernel = GPTQConfig(bits=int(name[0]), backend="gptq_torch")  # the file's own settings but for the backend
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float16,
                                                      quantization_config=kernel)
        compare(f"ours in transformers, {name}", folder, loaded, ids)


def theirs_here(mini, work, ids):
    tokenizer = AutoTokenizer.from_pretrained(mini)
    text = Path(f"{TEXT}/calib.txt").read_text()
    samples = [dict(tokenizer(text[i:i + 1000])) for i in range(0, 64000, 1000)]
    for name, form in {"4 bit sym desc_act g32, v1": dict(bits=4, group_size=32, sym=True, desc_act=True),
                       "4 bit sym g128, v1": dict(bits=4, group_size=128, sym=True, desc_act=False),
                       "3 bit asym g32, v2": dict(bits=3, group_size=32, sym=False, desc_act=False, format="gptq_v2")
                       }.items():
        folder = Path(work) / ("their-" + name.replace(" ", "-"))
        model = GPTQModel.load(mini, QuantizeConfig(**form), device="cpu")
        model.quantize(samples, batch_size=1, backend=BACKEND.GPTQ_TORCH)
        model.save(str(folder))
        loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
        compare(f"GPTQModel's here, {name}", folder, loaded.model, ids)


if __name__ == "__main__":
    ids = torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(1))
    for mini in MINIS:
        print(f"{mini}:")
        with tempfile.TemporaryDirectory() as work:
            ours_there(mini, work, ids)
            theirs_here(mini, work, ids)
    sys.exit(len(failed) > 0)

# The paper's models at full size with random weights: bcq's logits, block outputs, outputs of layers and gradients
# against timm and transformers. One line per comparison: the largest absolute difference over the largest
# absolute value of the reference. Run by `make parity`; names given as arguments are compared alone.
# Nothing is downloaded.
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
import networks  # noqa: E402

BIN = Path(os.environ.get("BCQ_BIN") or Path(os.environ.get("BUILD", "build")) / "bin")
LOGITS, ACTIVATIONS, GRADIENTS = 1e-5, 1e-5, 1e-4
failures = 0


def error(got, want):
    if got.shape != want.shape:
        return float("inf")
    return ((got - want).abs().max() / want.abs().max()).item()


def report(what, value, limit):
    """One line; a NaN fails."""
    global failures
    passed = value <= limit
    failures += not passed
    print(f"{'pass' if passed else 'FAIL'}  {what}: {value:.2e} (limit {limit:.0e})", flush=True)


def require_alive(what, logits):
    """Random weights must not drown the images: their logits have to differ, between images and classes."""
    spread = (logits - logits.mean(0)).abs().max() / logits.abs().max()
    assert logits.std(1).min() > 0.1 and spread > 0.01, f"{what}: logits of all images are alike ({spread:.1e})"


def worst(got, want, prefix):
    """The largest error of all tensors whose names start with `prefix`, and which one has it."""
    names = [name for name in want if name.startswith(prefix)]
    assert names, prefix
    errors = {name: error(got[name], want[name]) if name in got else float("inf") for name in names}
    name = max(errors, key=lambda n: errors[n])
    return errors[name], f"{len(names)} tensors {prefix}*, worst {name}"


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with code {done.returncode}")


def forward(model, inputs, folder):
    """The logits of bin/forward, and the seconds it took."""
    save_file(inputs, folder / "input.safetensors")
    start = time.time()
    run(BIN / "forward", "--model", model, "--input", folder / "input.safetensors", "--output",
        folder / "output.safetensors")
    return load_file(folder / "output.safetensors")["logits"], time.time() - start


def dump(model, inputs, folder):
    save_file(inputs, folder / "input.safetensors")
    run(BIN / "parity" / "dump_layers", model, folder / "input.safetensors", folder / "dump.safetensors")
    return load_file(folder / "dump.safetensors")


# The paper's ten configurations, the distilled form, and the smallest checkpoint there is.
VISION = ["vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch16_384", "deit_small_patch16_224",
          "deit_base_patch16_224", "deit_base_patch16_384", "swin_tiny_patch4_window7_224",
          "swin_small_patch4_window7_224", "swin_base_patch4_window7_224", "swin_base_patch4_window12_384",
          "deit_tiny_distilled_patch16_224", "test_vit"]
# google/vit-base-patch16-224, facebook/deit-base-distilled-patch16-224, microsoft/swin-tiny-patch4-window7-224;
# facebook/deit-base-patch16-224 has the names and classes of the first.
TRANSFORMERS = ["vit", "deit", "swin"]
GRADIENTS_OF = ("vit_base_patch16_224", "swin_tiny_patch4_window7_224")


def compare_vision(name, folder):
    model = networks.vision(name, seed=11)
    networks.write_vision(model, folder / name, name)
    side = model.patch_embed.img_size[0]
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(12))
    with torch.no_grad():
        want = model(pixels)
    require_alive(name, want)
    logits, seconds = forward(folder / name, {"pixel_values": pixels}, folder)
    report(f"{name}, 3 images, logits, {seconds:.1f} s", error(logits, want), LOGITS)
    if name.startswith("swin"):
        networks.write_vision(model, folder / "old", name, old=True)
        old, _ = forward(folder / "old", {"pixel_values": pixels}, folder)
        report(f"{name}, names before timm 0.8, logits", 0.0 if torch.equal(old, logits) else float("inf"), 0.0)

    inputs, grad = {"pixel_values": pixels[:1]}, None
    if name in GRADIENTS_OF:  # dL/dlogits as a cross entropy would give it: p - onehot(y)
        grad = want[:1].softmax(-1)
        grad[0, 17] -= 1
        inputs["grad_logits"] = grad
    reference = networks.run_vision(model, pixels[:1], grad)
    got = dump(folder / name, inputs, folder)
    for prefix, limit in (("embed", ACTIVATIONS), ("block.", ACTIVATIONS), ("site.", ACTIVATIONS),
                          ("grad.", GRADIENTS)):
        if prefix != "grad." or grad is not None:
            value, detail = worst(got, reference, prefix)
            report(f"{name}, {detail}", value, limit)


def compare_transformers(kind, folder):
    model = networks.transformers_vision(kind, seed=31, num_labels=1000)  # the defaults are the base models' sizes
    networks.write_transformers(model, folder / kind)
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size,
                         generator=torch.Generator().manual_seed(32))
    with torch.no_grad():
        want = model(pixels).logits
    require_alive(kind, want)
    logits, seconds = forward(folder / kind, {"pixel_values": pixels}, folder)
    report(f"transformers' {kind}, 2 images, logits, {seconds:.1f} s", error(logits, want), LOGITS)


# transformers' language models at the sizes of the paper and of other published ones, and head counts that are no power of two for ALiBi.
LANGUAGE = {
    "opt-125m": ("opt", dict(vocab_size=50272, hidden_size=768, word_embed_proj_dim=768, num_hidden_layers=12,
                             num_attention_heads=12, ffn_dim=3072)),
    "opt-350m": ("opt", dict(vocab_size=50272, hidden_size=1024, word_embed_proj_dim=512, num_hidden_layers=24,
                             num_attention_heads=16, ffn_dim=4096, do_layer_norm_before=False)),
    "bloom-560m": ("bloom", dict(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)),
    "bloom-12-heads": ("bloom", dict(vocab_size=5000, hidden_size=768, n_layer=3, n_head=12)),
    "bloom-10-heads": ("bloom", dict(vocab_size=5000, hidden_size=640, n_layer=3, n_head=10,
                                     apply_residual_connection_post_layernorm=True)),
    # Two blocks each; those of vocabularies above 100,000 with fewer entries.
    "tinyllama": ("llama", dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=2,
                                num_attention_heads=32, num_key_value_heads=4, rms_norm_eps=1e-5)),
    "llama-3.2-1b": ("llama", dict(vocab_size=5000, hidden_size=2048, intermediate_size=8192, num_hidden_layers=2,
                                   num_attention_heads=32, num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5,
                                   tie_word_embeddings=True, max_position_embeddings=131072,
                                   rope_parameters=dict(rope_type="llama3", rope_theta=5e5, factor=32.0,
                                                        low_freq_factor=1.0, high_freq_factor=4.0,
                                                        original_max_position_embeddings=8192))),
    "mistral-linear": ("mistral", dict(vocab_size=5000, hidden_size=1024, intermediate_size=3584, num_hidden_layers=2,
                                       num_attention_heads=8, num_key_value_heads=2, sliding_window=None,
                                       rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0))),
    "qwen2-0.5b": ("qwen2", dict(vocab_size=5000, hidden_size=896, intermediate_size=4864, num_hidden_layers=2,
                                 num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
                                 rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3-0.6b": ("qwen3", dict(vocab_size=5000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=2,
                                 num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True,
                                 rope_parameters=dict(rope_type="default", rope_theta=1e6))),
}


def compare_language(name, folder):
    kind, sizes = LANGUAGE[name]
    model = networks.language(kind, seed=21, **sizes)
    g = torch.Generator().manual_seed(22)
    short = torch.randint(0, sizes["vocab_size"], (2, 256), generator=g)
    windows = [short]
    if sizes["vocab_size"] < 100_000:  # whose logits fit into memory several times over
        windows.append(torch.randint(0, sizes["vocab_size"], (1, 2048), generator=g))
    for dtype in ("float32", "float16", "bfloat16"):
        path = folder / dtype
        networks.write_language(model.to(getattr(torch, dtype)), path)
        dtypes = {t.dtype for t in load_file(path / "model.safetensors").values()}
        assert dtypes == {getattr(torch, dtype)}, dtypes
        # The values of the file, computed with in float32, and all that is not in the file, as rotary frequencies.
        model = type(model).from_pretrained(path, dtype=torch.float32).eval()
        for ids in windows if dtype == "float32" else [short]:
            with torch.no_grad():
                want = model(input_ids=ids, use_cache=False).logits
            logits, seconds = forward(path, {"input_ids": ids}, folder)
            report(f"{name}, {dtype} file, {ids.shape[0]} x {ids.shape[1]} tokens, logits, {seconds:.1f} s",
                   error(logits, want), LOGITS)
            del want, logits
        if dtype == "float32":
            ids = short[:1, :200]
            reference = networks.run_language(model, ids)
            got = dump(path, {"input_ids": ids}, folder)
            for prefix in ("embed", "block.", "site."):
                value, detail = worst(got, reference, prefix)
                report(f"{name}, 200 tokens, {detail}", value, ACTIVATIONS)
            del reference, got
        (path / "model.safetensors").unlink()


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    every = [(name, compare_vision) for name in VISION] + [(kind, compare_transformers) for kind in TRANSFORMERS]
    every += [(name, compare_language) for name in LANGUAGE]
    wanted = sys.argv[1:]
    unknown = set(wanted) - {name for name, _ in every}
    if unknown:
        sys.exit(f"nothing to compare is called {', '.join(sorted(unknown))}")
    for name, compare in every:
        if not wanted or name in wanted:
            with tempfile.TemporaryDirectory(prefix="bcq-parity-") as folder:
                compare(name, Path(folder))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

# ONNX files of the vision models in ONNX Runtime and OpenVINO beside the engine: the same images, preprocessed by the
# engine, through the float network and through it quantized by several methods at several widths. A line for each file
# and runtime, against the engine's simulated network and the one in integers: first classes that differ, of them ties
# within rounding, the largest difference of a logit, milliseconds an image. Run by `make ONNX=1 parity`; a build without
# ONNX is left out.
#
#   python tests/parity/onnx_parity.py --limit 500 vit swin
#   python tests/parity/onnx_parity.py --models NAME=FOLDER --images FOLDER --calib FOLDER --methods repq-vit --bits 8,4
#
# A tie within rounding: an image whose two first classes are no further apart, in the engine's logits, than twice the
# largest difference that any logit of that image has: where a value lies at a boundary of its grid, another order of
# summation moves it by a step.
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

BIN = Path(os.environ.get("BCQ_BIN") or Path(os.environ.get("BUILD", "build")) / "bin")
MINI = Path("data/mini")
BATCH = 25
TIED = 0.04  # most images with another first class
failures = 0


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with code {done.returncode}: {done.stderr.strip()}")


def timed(work, pixels, repeats):
    """The outputs of all batches, and the median milliseconds of one image of the first batch."""
    outputs = np.concatenate([work(pixels[i:i + BATCH]) for i in range(0, len(pixels), BATCH)])
    first, times = pixels[:BATCH], []
    for _ in range(repeats):
        start = time.perf_counter()
        work(first)
        times.append(time.perf_counter() - start)
    return outputs, 1e3 * statistics.median(times) / len(first)


def onnxruntime(path, threads):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"pixel_values": x})[0]


def openvino(path, threads):
    import openvino as ov
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                                                         "INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: compiled(x)[0].copy()


RUNTIMES = {"ONNX Runtime": onnxruntime, "OpenVINO": openvino}


def ours(model, pixels, folder, threads, repeats, *arguments):
    """The engine's logits, and milliseconds an image."""
    save_file({"pixel_values": pixels}, folder / "all.safetensors")
    save_file({"pixel_values": pixels[:BATCH]}, folder / "first.safetensors")
    common = ["--threads", threads, "--model", model, *arguments]
    run(BIN / "forward", *common, "--input", folder / "all.safetensors", "--output", folder / "logits.safetensors")
    run(BIN / "forward", *common, "--input", folder / "first.safetensors", "--output", folder / "unused.safetensors",
        "--repeats", repeats, "--json", folder / "time.json")
    ms = json.loads((folder / "time.json").read_text())["ms"] / len(pixels[:BATCH])
    return load_file(folder / "logits.safetensors")["logits"], ms


def compare(what, got, wanted, ms, most):
    """A line of how far these logits are from each of `wanted`, by name; passes where the first classes of at most a
    share `most` of the images differ from one of them, all tied."""
    global failures
    texts, passed = [], False
    for name, want in wanted.items():
        difference = np.abs(got - want).max(1)
        two = np.sort(want, 1)[:, -2:]
        differs = got.argmax(1) != want.argmax(1)
        ties = int((differs & (two[:, 1] - two[:, 0] <= 2 * difference)).sum())
        n, wrong = len(want), int(differs.sum())
        passed |= np.isfinite(got).all() and wrong == ties and wrong <= most * n
        others = f" ({ties} of the others ties within rounding)" if wrong else ""
        texts.append(f"against {name} {n - wrong} of {n} first classes equal{others}, largest logit difference "
                     f"{difference.max():.2e}, median {np.median(difference):.2e}")
    failures += not passed
    print(f"{'pass' if passed else 'FAIL'}  {what}: {'; '.join(texts)}; {ms:.3f} ms an image", flush=True)


def parity(name, source, o, method, bits, folder, pixels):
    import onnx
    is_float = method == "fp32"
    options = [] if is_float else ["--calib-data", o.calib, "--wbits", bits, "--abits", bits, *o.options.split()]
    saved = folder / "saved"
    if not is_float:
        run(BIN / "imagenet", "--threads", o.threads, "--model", source, "--data", o.images, "--limit", 1, "--method",
            method, *options, "--save", saved)
    run(BIN / "imagenet", "--threads", o.threads, "--model", source if is_float else saved, "--data", o.images,
        "--limit", 1, "--save", folder / "onnx", "--format", "onnx")
    path = folder / "onnx" / "model.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    title = f"{name} {method}" + ("" if is_float else f" W{bits}A{bits}")
    model = source if is_float else saved
    want, ms = ours(model, pixels, folder, o.threads, o.repeats)
    print(f"      {title}: onnx.checker passes, {path.stat().st_size / 1e6:.2f} MB; logits up to "
          f"{np.abs(want).max():.1f}; the engine{'' if is_float else ', simulated'}: {ms:.3f} ms an image", flush=True)
    wanted = {"float" if is_float else "simulated": want}
    if not is_float:
        got, ms = ours(model, pixels, folder, o.threads, o.repeats, "--runtime", "integer")
        compare(f"{title}, the engine in integers", got, wanted, ms, 1)
        wanted["integer"] = got
    for runtime, load in RUNTIMES.items():
        try:
            work = load(path, o.threads)
        except ImportError:
            print(f"      {title}: {runtime} is not installed and is left out")
            continue
        got, ms = timed(work, pixels, o.repeats)
        compare(f"{title}, {runtime}", got, wanted, ms, 0 if is_float else TIED)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="of the embedded models: vit, deit, swin")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=FOLDER", help="other models")
    parser.add_argument("--images", default=MINI / "images" / "val")
    parser.add_argument("--calib", default=MINI / "images" / "calib")
    parser.add_argument("--methods", default="fp32,base-ptq,ptq4vit,repq-vit,joint")
    parser.add_argument("--bits", default="8,6,4")
    parser.add_argument("--options", default="--bc channel", help="of imagenet")
    parser.add_argument("--limit", type=int, default=200, help="images; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    probe = subprocess.run([str(BIN / "imagenet"), "--model", "x", "--data", "x", "--save", "x", "--format", "onnx"],
                           capture_output=True, text=True)
    if "make ONNX=1" in probe.stderr:
        print("onnx_parity: these programs were built without ONNX and are left out")
        return 0
    models = dict(m.split("=", 1) for m in o.models)
    for name in o.names or ([] if models else ["vit", "deit", "swin"]):
        models[name] = MINI / name
    for name, source in models.items():
        with tempfile.TemporaryDirectory(prefix="bcq-onnx-") as folder:
            run(BIN / "parity" / "dump_batch", source, o.images, o.limit, Path(folder) / "batch.safetensors")
            pixels = load_file(Path(folder) / "batch.safetensors")["pixel_values"]
        for method in o.methods.split(","):
            for bits in [32] if method == "fp32" else map(int, o.bits.split(",")):
                with tempfile.TemporaryDirectory(prefix="bcq-onnx-") as folder:
                    parity(name, source, o, method, bits, Path(folder), pixels)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

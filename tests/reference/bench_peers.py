"""The programs and the runtimes people use on the same work, with the same number of threads, interleaved.

For `make bench-peers`. Networks have random weights and real shapes; every engine runs the same weights on the same
inputs and the outputs are compared before anything is timed. Then, in every round, each engine has its turn: one pass
that does not count and the best of a few that do. Times are those of the best round; a ratio is the median of the
rounds', because a shared machine's speed drifts.

    python tests/reference/bench_peers.py --only 'Swin-T.*FP32' --rounds 3
"""
import argparse
import functools
import importlib.metadata
import json
import logging
import os
import re
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # every engine chooses its own kernels
    os.environ.pop(variable, None)

import networks
import numpy as np
import torch
from safetensors.torch import load_file, save_file

BIN = Path(os.environ.get("BCQ_BIN", "build/bin"))
MISMATCH = 1e-4  # float engines differ by less, of the largest logit
VISION = {"ViT-B/16": "vit_base_patch16_224", "DeiT-S": "deit_small_patch16_224",
          "Swin-T": "swin_tiny_patch4_window7_224"}
LANGUAGE = {"OPT-125M": ("opt", {}),  # the defaults are those of opt-125m
            "BLOOM-560M": ("bloom", dict(hidden_size=1024, n_layer=24, n_head=16)),
            "LLaMA-1B/4": ("llama", dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
                                         num_attention_heads=32, num_key_value_heads=8))}  # four of 16 blocks
VOCABULARY = 1024  # of the language models: their blocks are measured, a head of 250880 rows would hide them
CONTEXT = 128      # tokens in the cache when a single one is timed
PREFILL = 2048
GGUF = {"FP32": ("F32",), "4 bit": ("Q4_0", "Q4_K_S"), "3 bit": ("Q3_K_S",), "2 bit": ("Q2_K",)}  # the nearest
PACKAGES = ("torch", "timm", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "gguf",
            "llama-cpp-python")


class Absent(Exception):
    """Why an engine has no figure."""


# --- Engines: each gives a function of the number of timed passes that returns (ms, output) --------------------------

def in_process(work):
    def measure(repeats):
        output, times = work(), []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return 1e3 * min(times) if times else None, output
    return measure


class Ours:
    """Subprocesses that time themselves."""

    def __init__(self, threads):
        self.threads, self.environment, self.facts = threads, {}, {}
        # OpenBLAS may be older than the processor; the programs then name the setting that README tells users of.
        hint = re.search(r"OPENBLAS_CORETYPE=(\w+)", self.run("bench", "--repeats", 0).stderr)
        self.environment = {"OPENBLAS_CORETYPE": hint[1]} if hint else {}

    def run(self, program, *args):
        return subprocess.run([BIN / program, "--threads", str(self.threads), *map(str, args)], text=True,
                              capture_output=True, env={**os.environ, **self.environment})

    def record(self, folder, program, *args):
        done = self.run(program, *args, "--json", folder / "ours.json")
        if done.returncode:
            raise Absent("not run: " + done.stderr.strip().splitlines()[0])
        record = json.loads((folder / "ours.json").read_text())
        self.facts = record if isinstance(record, dict) else record[0]
        return self.facts

    def forward(self, folder, *options, last=False, **inputs):
        save_file(inputs, folder / "in.safetensors")

        def measure(repeats):
            record = self.record(folder, "forward", "--model", folder, "--input", folder / "in.safetensors",
                                 "--output", folder / "out.safetensors", "--repeats", max(1, repeats), *options)
            logits = load_file(folder / "out.safetensors")["logits"]
            return record["ms"], (logits[:, -1] if last else logits).numpy()
        return measure

    def bench(self, folder, row, ms):
        """A row of `bench`, whose weights are its own: there is no output to compare."""
        return lambda repeats: (ms(self.record(folder, "bench", "--only", row, "--repeats", max(1, repeats))), None)


def pytorch(model, *inputs):
    return in_process(torch.inference_mode()(lambda: model(*inputs).numpy()))


def onnx_file(folder, model, pixels):
    path = folder / "model.onnx"
    if not path.exists():
        need("onnx", "onnxscript")
        torch.onnx.export(model, (pixels,), path, dynamo=True, verbose=False, external_data=False,
                          input_names=["pixels"], output_names=["logits"])
    return path


def qdq_file(folder, model, pixels):
    """Static quantization: weights s8 per channel, inputs of the products u8, ranges of the inputs that are measured
    and of others like them."""
    path = folder / "model.int8.onnx"
    if not path.exists():
        need("onnx", "onnxruntime")
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
        batches = iter([{"pixels": x.numpy()} for x in (pixels, torch.randn_like(pixels))])
        reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: next(batches, None)})
        quant_pre_process(onnx_file(folder, model, pixels), folder / "prepared.onnx", skip_symbolic_shape=True)
        quantization.quantize_static(
            folder / "prepared.onnx", path, reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            weight_type=quantization.QuantType.QInt8, activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"])  # faster here, in both runtimes, than every operator
    return path


def onnxruntime(path, pixels, threads):
    need("onnxruntime")
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"pixels": pixels.numpy()}
    return in_process(lambda: session.run(None, inputs)[0])


def openvino(path, pixels, threads):
    need("openvino")
    import openvino as ov
    # Its own choice would be bfloat16 where the processor has it: another computation.
    model = ov.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                                                  "INFERENCE_PRECISION_HINT": "f32"})
    inputs = pixels.numpy()
    return in_process(lambda: model(inputs)[0].copy())


def need(*packages):
    for package in packages:
        if version(package) is None:
            raise Absent(f"{package} is not installed")


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def of_bloom(writer, c):
    """Keys of llama.cpp's BLOOM, and how it stores a tensor: q, k and v of a head follow each other in transformers';
    in a GGUF file all of q come first."""
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(4 * c.hidden_size)
    writer.add_layer_norm_eps(c.layer_norm_epsilon)

    def stored(name, tensor):
        if "query_key_value" not in name:
            return tensor
        return tensor.unflatten(0, (c.num_attention_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return stored


def of_llama(writer, c):
    """The same of LLaMA, whose rotary pairs are neighbours in a GGUF file and half a head apart in transformers'."""
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)

    def stored(name, tensor):
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else tensor
    return stored


def gguf_file(folder, model, file_type):
    """The model as llama.cpp reads it, without a tokenizer, and quantized by its own quantizer as its users do."""
    need("gguf", "llama-cpp-python")
    import gguf
    import llama_cpp
    path = folder / "model.F32.gguf"
    if not path.exists():
        c, kind = model.config, model.config.model_type
        writer = gguf.GGUFWriter(path, kind)
        writer.add_context_length(PREFILL)
        writer.add_block_count(c.num_hidden_layers)
        writer.add_head_count(c.num_attention_heads)
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(VOCABULARY)
        stored = {"bloom": of_bloom, "llama": of_llama}[kind](writer, c)
        names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind.upper()), c.num_hidden_layers)
        tensors = (model.transformer if kind == "bloom" else model).state_dict()  # BLOOM's head is its embedding
        for name, tensor in tensors.items():
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), stored(name, tensor).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    if file_type == "F32":
        return path
    quantized = folder / f"model.{file_type}.gguf"
    if not quantized.exists():
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
        if llama_cpp.llama_model_quantize(str(path).encode(), str(quantized).encode(), parameters):
            raise Absent(f"llama.cpp could not quantize to {file_type}")
    return quantized


def llama_cpp_tokens(path, ids, past, threads):
    """Logits of the last of `ids`, whose first `past` are in the cache."""
    import llama_cpp
    exact = {"type_k": 0, "type_v": 0} if "F32" in path.name else {}  # keys and values as float32, not float16
    llm = llama_cpp.Llama(str(path), n_ctx=PREFILL, n_batch=PREFILL, n_threads=threads, n_threads_batch=threads,
                          verbose=False, **exact)
    llm.eval(ids[:past])

    def work():
        llm.n_tokens = past
        llm.eval(ids[past:])
        return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(1, VOCABULARY)).copy()
    return in_process(work)


# --- Works: each gives (how to prepare every engine, PyTorch's float logits, items that a figure is per) -------------

def vision(ours, folder, name, batch, bits):
    """W8A8: every engine has grids of its own (ours keep the pixels float, PyTorch's are made anew for every input)."""
    architecture = VISION[name]
    folder = folder / f"{architecture}-{batch}"
    model = networks.vision(architecture, seed=1)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    networks.write_vision(model, folder, architecture)
    reference = pytorch(model, pixels)(0)[1]
    threads = ours.threads
    if bits == "FP32":
        return {"ours": lambda: ours.forward(folder, pixel_values=pixels),
                "PyTorch": lambda: pytorch(model, pixels),
                "ONNX Runtime": lambda: onnxruntime(onnx_file(folder, model, pixels), pixels, threads),
                "OpenVINO": lambda: openvino(onnx_file(folder, model, pixels), pixels, threads)}, reference, batch
    dynamic = torch.ao.quantization.quantize_dynamic
    return {"ours": lambda: ours.forward(folder, "--integer-bits", 8, pixel_values=pixels),
            "PyTorch, dynamic": lambda: pytorch(dynamic(model, {torch.nn.Linear}), pixels),
            "ONNX Runtime": lambda: onnxruntime(qdq_file(folder, model, pixels), pixels, threads),
            "OpenVINO": lambda: openvino(qdq_file(folder, model, pixels), pixels, threads)}, reference, batch


def language(ours, folder, name, tokens, bits):
    """Logits of the last of `tokens` tokens; a single one follows CONTEXT others, whose keys and values are kept."""
    kind, sizes = LANGUAGE[name]
    folder = folder / kind
    model = networks.language(kind, seed=1, vocab_size=VOCABULARY, **sizes)
    past = CONTEXT if tokens == 1 else 0
    ids = torch.randint(0, VOCABULARY, (1, past + tokens), generator=torch.Generator().manual_seed(2))
    networks.write_language(model, folder)

    def ms(row):
        return row["token_ms"] if past else 1e3 * tokens / row["prefill_tokens_per_second"]

    engines = {"ours": lambda: ours.forward(folder, last=True, input_ids=ids) if bits == "FP32" and not past else
                       ours.bench(folder, f"{name} blocks, {bits}$", ms)}
    if bits != "FP32" and not past:  # activations of 16 bits, where the default's have 24
        engines["--prefill-bits 16"] = lambda: ours.bench(
            folder, f"{name} blocks, {bits}$",
            lambda row: 1e3 * tokens / row["prefill_16_bit_tokens_per_second"])
    with torch.inference_mode():
        reference = model(ids).logits[:, -1].numpy()
        cache = model(ids[:, :past], use_cache=True).past_key_values if past else None

    def step():
        logits = model(ids[:, past:], past_key_values=cache, use_cache=bool(past)).logits[:, -1]
        if past:
            cache.crop(-1)
        return logits

    if bits == "FP32":
        engines["PyTorch"] = lambda: pytorch(step)
    if kind in ("bloom", "llama"):
        for file_type in GGUF[bits]:
            engines[f"llama.cpp {file_type}"] = lambda file_type=file_type: llama_cpp_tokens(
                gguf_file(folder, model, file_type), ids[0].tolist(), past, ours.threads)
    return engines, reference, 1


def what(tokens):
    return "1 token" if tokens == 1 else f"{tokens} tokens"


WORKS = {f"{name}, batch {batch}, {bits}": functools.partial(vision, name=name, batch=batch, bits=bits)
         for name in VISION for batch in (1, 8) for bits in ("FP32", "W8A8")}
WORKS |= {f"{name}, {what(tokens)}, {bits}": functools.partial(language, name=name, tokens=tokens, bits=bits)
          for name in LANGUAGE for tokens in (PREFILL, 1) for bits in (["FP32"] if name == "OPT-125M" else GGUF)}


# --- Run -------------------------------------------------------------------------------------------------------------

def compared(output, reference, bits):
    """The largest difference over the largest float logit, or the cosine to the float logits."""
    if output is None:
        return "weights of its own"
    if bits != "FP32":
        return f"cosine {np.vdot(output, reference) / np.linalg.norm(output) / np.linalg.norm(reference):.5f}"
    difference = np.abs(output - reference).max() / np.abs(reference).max()
    return f"{'difference' if difference <= MISMATCH else 'MISMATCH'} {difference:.1e}"


def compare(name, prepare, rounds, repeats):
    """A record of each engine, in the order they ran."""
    engines, reference, items = prepare()
    records, measures = {}, {}
    for engine, make in engines.items():
        records[engine] = record = {"work": name, "engine": engine}
        try:
            measures[engine] = make()
            record["output"] = compared(measures[engine](0)[1], reference, name.split(", ")[-1])
        except Exception as error:  # a peer that cannot do this work is a line of the table
            measures.pop(engine, None)
            record["output"] = f"{error}" if isinstance(error, Absent) else f"{type(error).__name__}: {error}"
    times = {engine: [] for engine in measures}
    for _ in range(rounds):
        for engine, measure in measures.items():
            times[engine].append(measure(repeats)[0] / items)
    for engine in measures:
        records[engine] |= {"ms": min(times[engine]), "rounds_ms": times[engine]}
    for record in records.values():
        if "ms" in record and "ms" in records["ours"] and record is not records["ours"]:
            pairs = zip(records["ours"]["rounds_ms"], record["rounds_ms"])
            record["ours_over_this"] = statistics.median(ours / this for ours, this in pairs)
    return list(records.values())


def show(record):
    ms, ratio = record.get("ms"), record.get("ours_over_this")
    output = record["output"].replace("|", "/").splitlines()[0]
    print(f"| {record['work']:<30} | {record['engine']:<17} | {'' if ms is None else f'{ms:.2f}':>8} "
          f"| {'' if ratio is None else f'{ratio:.2f}':>5} | {output} |", flush=True)


def cpu():
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0]}, {len(names)} cores" if names else "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every engine (default 5)")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes in a turn (default 3)")
    parser.add_argument("--only", default="", metavar="REGEX", help="works whose name it is found in")
    parser.add_argument("--json", metavar="FILE", help="write the figures as a JSON array")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # of exporters and quantizers; the next one writes by itself
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    ours = Ours(args.threads)
    versions = {package: version(package) for package in PACKAGES}
    print(f"{cpu()}; {args.threads} threads for every engine")
    for package, found in versions.items():
        print(f"{package} {found or 'is not installed'}")
    print(f"PyTorch's kernels: {torch.backends.cpu.get_cpu_capability()}")
    print("ours with " + (" ".join(f"{k}={v}" for k, v in ours.environment.items()) or "the environment unchanged"))
    print("\nms per image or window; ours over this: below 1 ours is faster; against PyTorch's float logits: largest "
          "difference\nover the largest logit, or cosine\n\n| work | engine | ms | ours over this | against PyTorch's "
          "float logits |\n|---|---|---|---|---|", flush=True)
    records = []
    with tempfile.TemporaryDirectory("-bcq-peers") as folder:
        for name, prepare in WORKS.items():
            if not re.search(args.only, name):
                continue
            for record in compare(name, functools.partial(prepare, ours, Path(folder)), args.rounds, args.repeats):
                records.append(record)
                show(record)
    facts = {key: ours.facts.get(key) for key in ("version", "isa", "blas")}
    print(f"\nours: bcq {facts['version']}, {facts['isa']} kernels, {facts['blas']}")
    if args.json:
        common = {"cpu": cpu(), "threads": args.threads, "versions": versions, "ours": facts | ours.environment}
        Path(args.json).write_text(json.dumps([record | common for record in records], indent=2) + "\n")


main()

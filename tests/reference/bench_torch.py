"""PyTorch on the work of `bench`, for `make bench` where the reference environment is installed.

Prints the median time of vit_base_patch16_224 (batch 1 and 8) and of the blocks of
opt-125m on 2048 tokens, float32, random weights, as many threads as given.

    python tests/reference/bench_torch.py [threads]
"""
import statistics
import sys
import time

import timm
import torch
from transformers import OPTConfig, OPTModel


def median_ms(work, repeats=5):
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@torch.inference_mode()
def main():
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    vit = timm.create_model("vit_base_patch16_224").eval()
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, 224, 224)
        print(f"ViT-B/16, batch {batch}, per image: {median_ms(lambda: vit(pixels)) / batch:.2f} ms")
    opt = OPTModel(OPTConfig()).eval()  # the defaults are those of opt-125m
    ids = torch.randint(0, 50272, (1, 2048))
    print(f"OPT-125M blocks, 2048 tokens: {median_ms(lambda: opt(ids, use_cache=False)):.2f} ms")


main()

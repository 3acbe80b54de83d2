"""generate on a machine that is shared: alone, beside a busy loop on one core, and under quotas of its cgroup.

By default and with one thread, in turns: milliseconds for all tokens but the first, of the best round; a ratio is the median of the
rounds'. Quotas need a cgroup's folder that may be written to, and are left out where there is none.

    python tests/reference/bench_shared.py --rounds 8 --json shared.json
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
    os.environ.pop(variable, None)

BIN = Path(os.environ.get("BCQ_BIN", "build/bin"))
CGROUPS = Path("/sys/fs/cgroup")
PROMPT = "The little dog"


def large_model(folder):
    """A random OPT of 12 layers of width 768 with the tokenizer of the embedded one."""
    import networks
    networks.write_language(networks.language("opt", seed=1, vocab_size=2048, num_hidden_layers=12), folder)
    for file in Path("data/mini/opt").glob("*"):
        if "token" in file.name or file.suffix == ".txt":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@contextlib.contextmanager
def alone():
    yield {}


@contextlib.contextmanager
def busy_loop():
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(loop.pid, {max(os.sched_getaffinity(0))})
    time.sleep(0.3)
    try:
        yield {}
    finally:
        loop.kill()
        loop.wait()


@contextlib.contextmanager
def quota(processors):
    """A cgroup of version 2 or 1 whose members have so many processors' time in each tenth of a second."""
    version2 = (CGROUPS / "cgroup.controllers").exists()
    group = (CGROUPS if version2 else CGROUPS / "cpu") / f"bcq-bench-{os.getpid()}"
    if version2 and "cpu" not in (CGROUPS / "cgroup.subtree_control").read_text().split():
        (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
    group.mkdir()
    try:
        if version2:
            (group / "cpu.max").write_text(f"{int(100000 * processors)} 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text(str(int(100000 * processors)))
        yield {"preexec_fn": lambda: (group / "cgroup.procs").write_text(str(os.getpid()))}
    finally:
        group.rmdir()


STATES = {"alone": alone, "one core taken by a busy loop": busy_loop,
          **{f"a quota of {q} processors": lambda q=q: quota(q) for q in (0.5, 1, 1.5)}}


def generate(model, tokens, threads, how):
    """Milliseconds of all tokens but the first, and the record."""
    options = ["--threads", str(threads)] if threads else []
    done = subprocess.run([BIN / "generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", str(tokens),
                           "--json", "-", *options], text=True, capture_output=True, **how)
    if done.returncode:
        sys.exit(done.stderr)
    record = json.loads(done.stdout)
    assert record["finish"] == "length", "the model ended its text: use another seed"
    return 1e3 * record["decode_seconds"], record


def measure(work, model, tokens, rounds, state):
    rows = [{"work": work, "engine": engine, "rounds_ms": []} for engine in ("default", "one thread")]
    with state() as how:
        for _ in range(rounds):
            for row, threads in zip(rows, (None, 1)):
                ms, record = generate(model, tokens, threads, how)
                row["rounds_ms"].append(ms)
                row |= {"threads": record["threads"], "version": record["version"], "isa": record["isa"]}
    for row in rows:
        row["ms"] = min(row["rounds_ms"])
    ratios = [both / one for both, one in zip(rows[0]["rounds_ms"], rows[1]["rounds_ms"])]
    rows[1] |= {"ours_over_this": statistics.median(ratios), "worst_ratio": max(ratios)}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", help="where the records go")
    args = parser.parse_args()
    if not (BIN / "generate").exists():
        sys.exit(f"{BIN / 'generate'} is not there: BCQ_BIN names the folder of the programs")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, tokens in (("embedded BLOOM", Path("data/mini/bloom"), 230),
                                    ("12 layers of 768", large_model(Path(folder) / "opt"), 60)):
            for state, enter in STATES.items():
                try:
                    rows = measure(f"{name}, {tokens} tokens, {state}", model, tokens, args.rounds, enter)
                except (OSError, subprocess.SubprocessError) as error:
                    print(f"{name}, {state}: left out: {error}", flush=True)
                    continue
                records += rows
                print(f"{rows[0]['work']}: {rows[0]['ms']:.0f} ms by default ({rows[0]['threads']} threads), "
                      f"{rows[1]['ms']:.0f} with one; median ratio {rows[1]['ours_over_this']:.2f}, "
                      f"worst {rows[1]['worst_ratio']:.2f}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()

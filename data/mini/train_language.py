#!/usr/bin/env python3
"""Trains the small language models of data/mini and their tokenizers, in Hugging Face form.

opt    learned positions, ReLU; vocab.json with merges.txt; a text begins with </s>
bloom  ALiBi, norm after the embedding, tanh GELU; tokenizer.json with BLOOM's split; no beginning token
llama  rotary positions, RMSNorm, SwiGLU, 2 key-value heads for 4 query heads; tokenizer.json with SmolLM's rules
       (every digit a token, then GPT-2's split); no beginning token

Data: WORK/train.txt from make_text.py (technical documentation from Debian
packages); text/test.txt and text/calib.txt are never trained on.

Run:  python3 train_language.py --arch opt --tokenizer   train the tokenizer, encode the texts
      python3 train_language.py --arch opt               train, write opt/; then bloom, llama
      python3 train_language.py --arch opt --eval        perplexity, baselines, simulated quantization

Printed for opt: training loss 3.17 at the end; --eval: test perplexity 27.233 (unigram
721.13, bigram 75.58), 3-bit per row 32.894, 2-bit with groups of 64 80.319.
"""
import argparse, json, math, os, time
import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
WINDOW, VOCAB, WIDTH, LAYERS, HEADS = 256, 2048, 128, 6, 4
SPECIAL = {"opt": ["<s>", "<pad>", "</s>", "<unk>"], "bloom": ["<unk>", "<s>", "</s>", "<pad>"],
           "llama": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}
END = {"bloom": 2, "llama": 0}      # the token behind a document in training
BLOOM_SPLIT = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"     # bigscience/bloom's own


def read(path):
    with open(path, encoding="utf-8", newline="") as f:
        return f.read()


def make_tokenizer(arch, work):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    docs = read(f"{work}/train.txt").split("\n\x00\n")
    tok = Tokenizer(models.BPE())
    opt, names, out = arch == "opt", SPECIAL[arch], f"{HERE}/{arch}"
    first = {"opt": [], "bloom": [pre_tokenizers.Split(Regex(BLOOM_SPLIT), "isolated")],
             "llama": [pre_tokenizers.Digits(individual_digits=True)]}[arch]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=arch != "bloom")
    tok.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level]) if first else byte_level
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[AddedToken(s, special=True, normalized=False) for s in names],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    if opt:
        tok.post_processor = processors.TemplateProcessing(
            single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)])
    elif arch == "bloom":
        tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=False)
    assert tok.get_vocab_size() == VOCAB and [tok.token_to_id(s) for s in names] == list(range(len(names)))
    os.makedirs(out, exist_ok=True)
    tok.save(f"{out}/tokenizer.json")
    if opt:
        tok.model.save(out)     # vocab.json, merges.txt

    def special(content):
        return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    roles = {"opt": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"},
             "bloom": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
             "llama": {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}}[arch]
    write_json(arch, "special_tokens_map.json", {k: special(v) if opt else v for k, v in roles.items()})
    write_json(arch, "tokenizer_config.json", {
        "add_prefix_space": False, **roles, "padding_side": "left", "tokenizer_class": "BloomTokenizerFast"}
        if arch == "bloom" else {
        "add_bos_token": opt, "add_prefix_space": False,
        "added_tokens_decoder": {str(i): dict(special(s), special=True) for i, s in enumerate(names)},
        **roles, "clean_up_tokenization_spaces": False, "errors": "replace",
        # transformers' own GPT2Tokenizer would split as GPT-2 does, whatever tokenizer.json says.
        "model_max_length": WINDOW, "tokenizer_class": "GPT2Tokenizer" if opt else "PreTrainedTokenizerFast"})
    ids = []
    for i in range(0, len(docs), 256):      # every document starts with </s>, or ends with the end token
        for e in tok.encode_batch(docs[i:i + 256]):
            ids.append(np.array(e.ids if opt else e.ids + [END[arch]], np.uint16))
    ids = np.concatenate(ids)
    np.save(f"{work}/train_{arch}.npy", ids)
    print("training tokens", len(ids), "bytes per token", sum(len(d.encode()) for d in docs) / len(ids))
    for name in ("test", "calib"):
        n = len(tok.encode(read(f"{HERE}/text/{name}.txt")).ids)
        print(name, n, "tokens,", n // WINDOW, "windows")


def write_json(arch, name, value):
    with open(f"{HERE}/{arch}/{name}", "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def encode(arch, path):
    from tokenizers import Tokenizer
    return np.array(Tokenizer.from_file(f"{HERE}/{arch}/tokenizer.json").encode(read(path)).ids)


def make_model(arch):
    from transformers import (BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig,
                              OPTForCausalLM)
    if arch == "llama":
        return LlamaForCausalLM(LlamaConfig(**CONFIG["llama"]))
    if arch == "bloom":
        return BloomForCausalLM(BloomConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, hidden_dropout=0.0, attention_dropout=0.0,
            initializer_range=0.04, bos_token_id=1, eos_token_id=2, pad_token_id=3))
    return OPTForCausalLM(OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, ffn_dim=4 * WIDTH, num_attention_heads=HEADS,
        max_position_embeddings=WINDOW, word_embed_proj_dim=WIDTH, do_layer_norm_before=True,
        activation_function="relu", dropout=0.0, attention_dropout=0.0, layerdrop=0.0, init_std=0.04,
        bos_token_id=2, eos_token_id=2, pad_token_id=1))


CONFIG = {      # what config.json says besides the sizes
    "opt": {
        "_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
        "do_layer_norm_before": True, "dropout": 0.0, "enable_bias": True, "eos_token_id": 2,
        "ffn_dim": 4 * WIDTH, "hidden_size": WIDTH, "init_std": 0.04, "layer_norm_elementwise_affine": True,
        "layerdrop": 0.0, "max_position_embeddings": WINDOW, "model_type": "opt",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "pad_token_id": 1, "prefix": "</s>",
        "tie_word_embeddings": True, "torch_dtype": "float32", "use_cache": True,
        "vocab_size": VOCAB, "word_embed_proj_dim": WIDTH},
    "bloom": {
        "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"],
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0,
        "initializer_range": 0.04, "layer_norm_epsilon": 1e-05, "model_type": "bloom", "n_embed": WIDTH,
        "n_head": HEADS, "n_layer": LAYERS, "pad_token_id": 3, "pretraining_tp": 1, "seq_length": WINDOW,
        "slow_but_exact": False, "tie_word_embeddings": True, "torch_dtype": "float32", "unk_token_id": 0,
        "use_cache": True, "vocab_size": VOCAB},
    "llama": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 0, "hidden_act": "silu", "hidden_size": WIDTH, "initializer_range": 0.04,
        "intermediate_size": 3 * WIDTH, "max_position_embeddings": WINDOW, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "torch_dtype": "float32", "use_cache": True, "vocab_size": VOCAB}}


def save(arch, model):
    from safetensors.torch import save_file
    out = f"{HERE}/{arch}"
    # BLOOM's published files have the names without "transformer."
    state = {k.removeprefix("transformer."): v.detach().float().contiguous()
             for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, f"{out}/model.safetensors.tmp", metadata={"format": "pt"})
    os.chmod(f"{out}/model.safetensors.tmp", 0o644)
    os.replace(f"{out}/model.safetensors.tmp", f"{out}/model.safetensors")
    write_json(arch, "config.json", CONFIG[arch])


def losses(logits, ids):
    return F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))


@torch.no_grad()
def perplexity(model, ids, limit=None):
    """Windows of 256 tokens, tail dropped: exp(mean of the windows' mean loss of 255 targets)."""
    model.eval()
    ids = torch.as_tensor(np.asarray(ids, np.int64))
    windows = ids[:len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[:limit]
    total = 0.0
    for w in windows.split(16):
        total += losses(model(w, use_cache=False).logits, w).item() * len(w)
    return math.exp(total / len(windows))


def train(a):
    torch.manual_seed(a.seed)
    ids = torch.from_numpy(np.load(f"{a.work}/train_{a.arch}.npy").astype(np.int32))
    test, same = encode(a.arch, f"{HERE}/text/test.txt"), encode(a.arch, f"{a.work}/same.txt")
    model = make_model(a.arch)
    run = torch.compile(model) if a.compile else model
    print("parameters", sum(p.numel() for p in model.parameters()))
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.0)
    per_epoch = (len(ids) - WINDOW) // WINDOW // a.batch
    steps, start, total, count = int(a.epochs * per_epoch), time.time(), 0.0, 0
    print("steps", steps, "tokens", steps * a.batch * WINDOW, flush=True)
    order = None
    for step in range(steps):
        if step % per_epoch == 0:       # every epoch cuts the stream at another offset
            order = torch.randperm(per_epoch * a.batch) * WINDOW + torch.randint(0, WINDOW, (1,))
        pick = order[step % per_epoch * a.batch:][:a.batch]
        batch = ids[pick[:, None] + torch.arange(WINDOW)[None]].long()
        lr = a.lr * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for g in opt.param_groups:
            g["lr"] = lr
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):     # weights stay float32
            logits = run(batch, use_cache=False).logits
        loss = losses(logits.float(), batch)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        total, count = total + loss.item(), count + 1
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps} lr {lr:.2e} loss {total / count:.4f} {time.time() - start:.0f}s", flush=True)
            total, count = 0.0, 0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(a.arch, model)
            print(f"  test perplexity {perplexity(model, test, 100):.3f} training pages {perplexity(model, same, 100):.3f}", flush=True)


def baselines(train_ids, ids):
    """Perplexity of token statistics of the training text, at the same targets."""
    t = train_ids.astype(np.int64)
    uni = np.bincount(t, minlength=VOCAB).astype(np.float64)
    bi = np.bincount(t[:-1] * VOCAB + t[1:], minlength=VOCAB * VOCAB).reshape(VOCAB, VOCAB).astype(np.float64)
    w = np.asarray(ids[:len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    a, b = w[:, :-1].ravel(), w[:, 1:].ravel()
    p_uni = (uni + 1) / (uni.sum() + VOCAB)
    row, kinds = bi.sum(1), (bi > 0).sum(1)
    p_add = (bi[a, b] + 0.1) / (row[a] + 0.1 * VOCAB)
    weight = row / np.maximum(row + kinds, 1)       # Witten-Bell interpolation with the unigram
    p_mix = weight[a] * bi[a, b] / np.maximum(row[a], 1) + (1 - weight[a]) * p_uni[b]
    for name, p in (("unigram", p_uni[b]), ("bigram add-0.1", p_add), ("bigram interpolated", p_mix)):
        print(f"baseline {name}: test perplexity {np.exp(-np.log(p).mean()):.2f}")


def round_to_nearest(w, bits, group=None):
    """Asymmetric rounding to nearest, one scale per row or per group of columns of a row."""
    g = w.view(w.shape[0], -1, group or w.shape[1])
    lo, hi, top = g.amin(2, True).clamp(max=0), g.amax(2, True).clamp(min=0), 2 ** bits - 1
    s = (hi - lo).clamp(min=1e-12) / top
    z = (-lo / s).round()
    return (((g / s).round() + z).clamp(0, top) - z).mul(s).view_as(w)


@torch.no_grad()
def evaluate(a):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(f"{HERE}/{a.arch}", dtype=torch.float32).eval()
    test = encode(a.arch, f"{HERE}/text/test.txt")
    for name, path in (("test", f"{HERE}/text/test.txt"), ("calib", f"{HERE}/text/calib.txt"),
                       ("training pages of the same sources", f"{a.work}/same.txt")):
        print(f"FP32 perplexity {name}: {perplexity(model, encode(a.arch, path)):.4f}", flush=True)
    baselines(np.load(f"{a.work}/train_{a.arch}.npy"), test)
    blocks = {"opt": lambda m: m.model.decoder.layers, "bloom": lambda m: m.transformer.h,
              "llama": lambda m: m.model.layers}[a.arch](model)
    layers = [m for m in blocks.modules() if isinstance(m, torch.nn.Linear)]
    kept = [m.weight.clone() for m in layers]
    for bits, group in ((4, None), (3, None), (3, 64), (2, 64), (2, None)):
        for m, w in zip(layers, kept):
            m.weight.copy_(round_to_nearest(w, bits, group))
        print(f"{bits}-bit per {'row' if group is None else f'group of {group}'}: "
              f"test perplexity {perplexity(model, test):.4f}", flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--arch", choices=CONFIG, default="opt")
    p.add_argument("--tokenizer", action="store_true")
    p.add_argument("--eval", action="store_true")
    p.add_argument("--work", default="build", help="folder with train.txt, made by make_text.py")
    p.add_argument("--epochs", type=float, default=1.15)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--bf16", action="store_true", help="products in bfloat16 (faster on AVX512_BF16)")
    p.add_argument("--compile", action="store_true", help="use torch.compile (faster)")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.tokenizer:
        make_tokenizer(a.arch, a.work)
    elif a.eval:
        evaluate(a)
    else:
        train(a)


if __name__ == "__main__":
    main()

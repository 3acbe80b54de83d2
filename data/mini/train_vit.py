#!/usr/bin/env python3
"""Trains the small ViT of data/mini/vit on Fashion-MNIST and writes it in timm form.

Data: Debian package dataset-fashion-mnist (/usr/share/datasets/fashion-mnist).
The last 128 training images of every class are never trained on; 32 of them per
class become images/calib.  The first 200 test images of every class become
images/val.

Run:  python3 train_vit.py --images          write images/val and images/calib
      python3 train_vit.py                   train, write vit/
      python3 train_vit.py --eval            accuracy and simulated quantization

Printed: last epoch "loss 0.2635 test 90.16%"; --eval: test 90.16%, images/val 91.15%,
W8A8 91.20%, W6A6 90.45%, W4A4 74.40% (85.90% with the scale search).
"""
import argparse, gzip, json, math, os, time
import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = "/usr/share/datasets/fashion-mnist"
LABELS = ["0_tshirt_top", "1_trouser", "2_pullover", "3_dress", "4_coat",
          "5_sandal", "6_shirt", "7_sneaker", "8_bag", "9_ankle_boot"]
ARGS = dict(img_size=28, patch_size=4, embed_dim=64, depth=8, num_heads=4)
RESERVED = 128      # per class, never trained on


def load(split):
    def raw(kind, skip):
        with gzip.open(f"{DATA}/{split}-{kind}-ubyte.gz", "rb") as f:
            return np.frombuffer(f.read()[skip:], np.uint8)
    return raw("images-idx3", 16).reshape(-1, 28, 28).copy(), raw("labels-idx1", 8).astype(np.int64)


def reserved_mask(labels):
    mask = np.zeros(len(labels), bool)
    for c in range(10):
        mask[np.where(labels == c)[0][-RESERVED:]] = True
    return mask


def write_images():
    from PIL import Image
    def put(part, images, index, c):
        folder = f"{HERE}/images/{part}/{LABELS[c]}"
        os.makedirs(folder, exist_ok=True)
        for i in index:
            Image.fromarray(images[i]).save(f"{folder}/{i:05d}.png", optimize=True)
    images, labels = load("t10k")
    for c in range(10):
        put("val", images, np.where(labels == c)[0][:200], c)
    images, labels = load("train")
    mask = reserved_mask(labels)
    for c in range(10):
        put("calib", images, np.where(mask & (labels == c))[0][:32], c)


def to_input(x):            # uint8 [B,28,28] -> float [B,3,28,28], mean = std = 0.5
    x = x.float().div(255).sub(0.5).div(0.5)
    return x[:, None].expand(-1, 3, -1, -1)


def augment(x, shift=1):    # random flip and shift by up to `shift` pixels
    b = x.shape[0]
    flip = torch.rand(b) < 0.5
    x = torch.where(flip[:, None, None], x.flip(2), x)
    x = F.pad(x, (shift,) * 4)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, b, 1))
    r = torch.arange(28)[None]
    return x[torch.arange(b)[:, None, None], (dy + r)[:, :, None], (dx + r)[:, None, :]]


def make_model():
    import timm
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, **ARGS)


def save(model):
    from safetensors.torch import save_file
    os.makedirs(f"{HERE}/vit", exist_ok=True)
    state = {k: v.detach().float().contiguous() for k, v in model.state_dict().items()}
    save_file(state, f"{HERE}/vit/model.safetensors.tmp", metadata={"format": "pt"})
    os.chmod(f"{HERE}/vit/model.safetensors.tmp", 0o644)
    os.replace(f"{HERE}/vit/model.safetensors.tmp", f"{HERE}/vit/model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 10,
        "num_features": ARGS["embed_dim"], "global_pool": "token", "model_args": ARGS,
        "label_names": LABELS,
        "pretrained_cfg": {
            "tag": "fashion_mnist", "custom_load": False, "input_size": [3, 28, 28],
            "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 1.0,
            "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
            "num_classes": 10, "pool_size": None, "first_conv": "patch_embed.proj",
            "classifier": "head"}}
    with open(f"{HERE}/vit/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    good = 0
    for i in range(0, len(images), 500):
        good += (model(to_input(images[i:i + 500])).argmax(1) == labels[i:i + 500]).sum().item()
    return 100.0 * good / len(images)


def train(a):
    torch.manual_seed(a.seed)
    images, labels = load("train")
    keep = ~reserved_mask(labels)
    images, labels = torch.from_numpy(images[keep]), torch.from_numpy(labels[keep])
    ti, tl = map(torch.from_numpy, load("t10k"))
    model = make_model()
    run = torch.compile(model) if a.compile else model
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.0)
    per_epoch = len(images) // a.batch
    steps, step, start = a.epochs * per_epoch, 0, time.time()
    for epoch in range(a.epochs):
        model.train()
        total, order = 0.0, torch.randperm(len(images))
        for i in range(per_epoch):
            lr = a.lr * min(1.0, (step + 1) / 500) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for g in opt.param_groups:
                g["lr"] = lr
            pick = order[i * a.batch:(i + 1) * a.batch]
            loss = F.cross_entropy(run(to_input(augment(images[pick]))), labels[pick])
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            total += loss.item()
            step += 1
            if step % 100 == 0 and step <= 500:
                print(f"step {step} loss {loss.item():.3f} {time.time() - start:.0f}s", flush=True)
        print(f"epoch {epoch + 1}/{a.epochs} lr {lr:.2e} loss {total / per_epoch:.4f} "
              f"test {accuracy(model, ti, tl):.2f}% {time.time() - start:.0f}s", flush=True)
        save(model)


class Quantizer:
    """Symmetric uniform per-tensor quantization, plain or with a scale search.

    The step is max|x| / (2^(bits-1) - 0.5); the search scales it by 0.5 .. 1.2 for
    the largest cosine similarity.  Activation steps are found on the calibration
    images (learn = True) and kept.
    """
    def __init__(self, bits, search):
        self.bits, self.search, self.steps, self.learn = bits, search, {}, True

    def round(self, x, step):
        top = 2 ** (self.bits - 1)
        return (x / step).round().clamp(-top, top - 1) * step

    def step(self, x):
        step = x.abs().max() / (2 ** (self.bits - 1) - 0.5)
        if not self.search:
            return step
        flat = x.flatten()
        return max((step * f for f in torch.linspace(0.5, 1.2, 15)),
                   key=lambda d: F.cosine_similarity(flat, self.round(flat, d), dim=0).item())

    def weight(self, w):
        return self.round(w, self.step(w))

    def __call__(self, name, x):
        if self.learn:
            self.steps[name] = self.step(x)
            return x
        return self.round(x, self.steps[name])


@torch.no_grad()
def quantized_forward(model, q, x):
    """Forward pass with the inputs of all linear layers and attention products quantized."""
    def linear(name, layer, x):
        x = q(name, x)
        return F.linear(x, layer.weight if q.learn else q.weight(layer.weight), layer.bias)
    x = model._pos_embed(model.patch_embed(x))
    for i, b in enumerate(model.blocks):
        n, (B, N, C) = b.attn.num_heads, x.shape
        qkv = linear(f"{i}.qkv", b.attn.qkv, b.norm1(x)).view(B, N, 3, n, C // n).permute(2, 0, 3, 1, 4)
        a = q(f"{i}.q", qkv[0] * b.attn.scale) @ q(f"{i}.k", qkv[1]).transpose(-2, -1)
        y = q(f"{i}.softmax", a.softmax(-1)) @ q(f"{i}.v", qkv[2])
        x = x + linear(f"{i}.proj", b.attn.proj, y.transpose(1, 2).reshape(B, N, C))
        x = x + linear(f"{i}.fc2", b.mlp.fc2, F.gelu(linear(f"{i}.fc1", b.mlp.fc1, b.norm2(x))))
    return linear("head", model.head, model.norm(x)[:, 0])


@torch.no_grad()
def evaluate():
    import timm
    model = timm.create_model(f"local-dir:{HERE}/vit", pretrained=True).eval()
    images, labels = load("t10k")
    first = np.sort(np.concatenate([np.where(labels == c)[0][:200] for c in range(10)]))
    ti, tl = torch.from_numpy(images), torch.from_numpy(labels)
    vi, vl = ti[first], tl[first]
    images, labels = load("train")
    mask = reserved_mask(labels)
    calib = torch.from_numpy(np.concatenate([images[mask & (labels == c)][:32] for c in range(10)]))
    ri, rl = torch.from_numpy(images[mask]), torch.from_numpy(labels[mask])
    si, sl = torch.from_numpy(images[~mask][:10000]), torch.from_numpy(labels[~mask][:10000])
    print(f"FP32: test {accuracy(model, ti, tl):.2f}%  images/val {accuracy(model, vi, vl):.2f}%  "
          f"reserved {accuracy(model, ri, rl):.2f}%  first 10000 trained {accuracy(model, si, sl):.2f}%")
    q = Quantizer(8, False)     # check that the step-by-step forward pass is the model's own
    diff = (quantized_forward(model, q, to_input(calib)) - model(to_input(calib))).abs().max().item()
    assert diff < 1e-4, diff
    for bits in (8, 6, 5, 4, 3):
        for search in (False, True):
            q = Quantizer(bits, search)
            quantized_forward(model, q, to_input(calib))
            q.learn, good = False, 0
            for i in range(0, len(vi), 500):
                good += (quantized_forward(model, q, to_input(vi[i:i + 500])).argmax(1) == vl[i:i + 500]).sum().item()
            print(f"W{bits}A{bits} {'scale search' if search else 'plain       '} images/val {100 * good / len(vi):.2f}%", flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--images", action="store_true")
    p.add_argument("--eval", action="store_true")
    p.add_argument("--epochs", type=int, default=18)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--compile", action="store_true", help="use torch.compile (faster)")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.images:
        write_images()
    elif a.eval:
        evaluate()
    else:
        train(a)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Trains the small vision models of data/mini on Fashion-MNIST and writes them in timm form.

vit   a plain ViT
deit  a distilled DeiT (two heads): half of its loss is the ViT's hard decision
      ("Training data-efficient image transformers & distillation through attention")
swin  a Swin of three stages, windows of 4x4, on images enlarged to 32x32

Data: Debian package dataset-fashion-mnist (/usr/share/datasets/fashion-mnist).
The last 128 training images of every class are never trained on; 32 of them per
class become images/calib.  The first 200 test images of every class become
images/val.

Run:  python3 train_vision.py --images            write images/val and images/calib
      python3 train_vision.py --arch vit          train, write vit/; then deit, swin
      python3 train_vision.py --arch vit --eval   accuracy and simulated quantization
"""
import argparse, gzip, json, math, os, time
import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = "/usr/share/datasets/fashion-mnist"
LABELS = ["0_tshirt_top", "1_trouser", "2_pullover", "3_dress", "4_coat",
          "5_sandal", "6_shirt", "7_sneaker", "8_bag", "9_ankle_boot"]
HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# architecture, arguments, (mean, std)
ARCH = {
    "vit": ("vit_tiny_patch16_224", dict(img_size=28, patch_size=4, embed_dim=64, depth=8, num_heads=4), HALF),
    "deit": ("deit_tiny_distilled_patch16_224",
             dict(img_size=28, patch_size=4, embed_dim=64, depth=6, num_heads=4), IMAGENET),
    "swin": ("swin_tiny_patch4_window7_224",
             dict(img_size=32, patch_size=2, window_size=4, embed_dim=32, depths=[2, 2, 2], num_heads=[2, 4, 8]),
             IMAGENET)}
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


def enlarge(images, size):      # the engine's preprocessing: Pillow's bicubic, uint8 [B,S,S]
    from PIL import Image
    if images.shape[1] == size:
        return images
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.BICUBIC)) for x in images])


def to_input(x, arch):          # uint8 [B,S,S] -> float [B,3,S,S]
    mean, std = (torch.tensor(v)[None, :, None, None] for v in ARCH[arch][2])
    return (x.float().div(255)[:, None] - mean) / std


def augment(x, shift=1):    # random flip and shift by up to `shift` pixels
    b, size = x.shape[0], x.shape[1]
    flip = torch.rand(b) < 0.5
    x = torch.where(flip[:, None, None], x.flip(2), x)
    x = F.pad(x, (shift,) * 4)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, b, 1))
    r = torch.arange(size)[None]
    return x[torch.arange(b)[:, None, None], (dy + r)[:, :, None], (dx + r)[:, None, :]]


def make_model(arch):
    import timm
    name, args, _ = ARCH[arch]
    return timm.create_model(name, pretrained=False, num_classes=10, **args)


def load_trained(arch):
    import timm
    return timm.create_model(f"local-dir:{HERE}/{arch}", pretrained=True).eval()


def save(model, arch):
    from safetensors.torch import save_file
    name, args, (mean, std) = ARCH[arch]
    folder = f"{HERE}/{arch}"
    os.makedirs(folder, exist_ok=True)
    state = {k: v.detach().float().contiguous() for k, v in model.state_dict().items()}
    save_file(state, f"{folder}/model.safetensors.tmp", metadata={"format": "pt"})
    os.chmod(f"{folder}/model.safetensors.tmp", 0o644)
    os.replace(f"{folder}/model.safetensors.tmp", f"{folder}/model.safetensors")
    swin = arch == "swin"
    config = {
        "architecture": name, "num_classes": 10,
        "num_features": model.num_features, "global_pool": "avg" if swin else "token", "model_args": args,
        "label_names": LABELS,
        "pretrained_cfg": {
            "tag": "fashion_mnist", "custom_load": False, "input_size": [3, args["img_size"], args["img_size"]],
            "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 1.0,
            "crop_mode": "center", "mean": mean, "std": std,
            "num_classes": 10, "pool_size": None, "first_conv": "patch_embed.proj",
            "classifier": {"vit": "head", "deit": ["head", "head_dist"], "swin": "head.fc"}[arch]}}
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


@torch.no_grad()
def accuracy(model, arch, images, labels):
    model.eval()
    good = 0
    for i in range(0, len(images), 500):
        good += (model(to_input(images[i:i + 500], arch)).argmax(1) == labels[i:i + 500]).sum().item()
    return 100.0 * good / len(images)


def train(a):
    torch.manual_seed(a.seed)
    images, labels = load("train")
    keep = ~reserved_mask(labels)
    test, test_labels = load("t10k")
    size = ARCH[a.arch][1]["img_size"]
    images, ti = (torch.from_numpy(enlarge(x, size)) for x in (images[keep], test))
    labels, tl = torch.from_numpy(labels[keep]), torch.from_numpy(test_labels)
    model = make_model(a.arch)
    teacher = load_trained("vit") if a.arch == "deit" else None
    if teacher:
        model.set_distilled_training(True)
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
            x = augment(images[pick])
            with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):     # weights stay float32
                z = run(to_input(x, a.arch))
            if teacher:
                with torch.no_grad():
                    said = teacher(to_input(x, "vit")).argmax(1)
                loss = 0.5 * F.cross_entropy(z[0].float(), labels[pick]) + 0.5 * F.cross_entropy(z[1].float(), said)
            else:
                loss = F.cross_entropy(z.float(), labels[pick])
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            total += loss.item()
            step += 1
            if step % 100 == 0 and step <= 500:
                print(f"step {step} loss {loss.item():.3f} {time.time() - start:.0f}s", flush=True)
        print(f"epoch {epoch + 1}/{a.epochs} lr {lr:.2e} loss {total / per_epoch:.4f} "
              f"test {accuracy(model, a.arch, ti, tl):.2f}% {time.time() - start:.0f}s", flush=True)
        save(model, a.arch)


class QuantizedLinear(torch.nn.Module):
    """A linear layer with weight and input rounded to symmetric per-tensor grids.

    The step is max|x| / (2^(bits-1) - 0.5); the input's is that of the first batch it sees.
    """
    def __init__(self, layer, bits):
        super().__init__()
        self.bits, self.step, self.bias = bits, None, layer.bias
        self.weight = self.round(layer.weight, self.first_step(layer.weight))

    def first_step(self, x):
        return x.abs().max() / (2 ** (self.bits - 1) - 0.5)

    def round(self, x, step):
        top = 2 ** (self.bits - 1)
        return (x / step).round().clamp(-top, top - 1) * step

    def forward(self, x):
        if self.step is None:
            self.step = self.first_step(x)
        return F.linear(self.round(x, self.step), self.weight, self.bias)


def quantize_linears(module, bits):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(module, name, QuantizedLinear(child, bits))
        else:
            quantize_linears(child, bits)


@torch.no_grad()
def evaluate(arch):
    size = ARCH[arch][1]["img_size"]
    images, labels = load("t10k")
    first = np.sort(np.concatenate([np.where(labels == c)[0][:200] for c in range(10)]))
    ti, tl = torch.from_numpy(enlarge(images, size)), torch.from_numpy(labels)
    vi, vl = ti[first], tl[first]
    images, labels = load("train")
    mask = reserved_mask(labels)
    calib = torch.from_numpy(enlarge(np.concatenate(
        [images[mask & (labels == c)][:32] for c in range(10)]), size))
    ri, rl = torch.from_numpy(enlarge(images[mask], size)), torch.from_numpy(labels[mask])
    si, sl = torch.from_numpy(enlarge(images[~mask][:10000], size)), torch.from_numpy(labels[~mask][:10000])
    model = load_trained(arch)
    print(f"FP32: test {accuracy(model, arch, ti, tl):.2f}%  images/val {accuracy(model, arch, vi, vl):.2f}%  "
          f"reserved {accuracy(model, arch, ri, rl):.2f}%  first 10000 trained {accuracy(model, arch, si, sl):.2f}%")
    for bits in (8, 6, 4):
        model = load_trained(arch)
        quantize_linears(model, bits)
        model(to_input(calib, arch))
        print(f"W{bits}A{bits} linear layers, largest value: images/val {accuracy(model, arch, vi, vl):.2f}%", flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--arch", choices=ARCH, default="vit")
    p.add_argument("--images", action="store_true")
    p.add_argument("--eval", action="store_true")
    p.add_argument("--epochs", type=int, default=18)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--bf16", action="store_true", help="products in bfloat16 (twice as fast for swin on AVX512_BF16)")
    p.add_argument("--compile", action="store_true", help="use torch.compile (faster)")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.images:
        write_images()
    elif a.eval:
        evaluate(a.arch)
    else:
        train(a)


if __name__ == "__main__":
    main()

"""Compare the image pipeline with Pillow and torchvision on real images.

PNG: the samples re-saved losslessly, so only resampling and cropping are compared (target:
no differing pixel). JPEG: the originals with each decoder, after decoding and after the whole
transform, and what the difference does to logits: of a network with random weights at its real
size and of the embedded one, both run by timm on the two sets of pixels. Target with
libjpeg-turbo: no differing pixel. Images: --data DIR or BCQ_DATA, a folder with imagenet/<synset>/*.JPEG.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, features
from torchvision import transforms
from torchvision.transforms import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
import networks  # noqa: E402

BUILD = Path(os.environ.get("BUILD", "build"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dump(tool, stage, size, crop_pct, interpolation, paths, dtype=np.uint8):
    with tempfile.TemporaryDirectory() as tmp:
        listing, out = Path(tmp, "list"), Path(tmp, "out")
        listing.write_text("".join(f"{p}\n" for p in paths))
        subprocess.run([tool, stage, str(size), str(crop_pct), interpolation, listing, out], check=True)
        data = out.read_bytes()
    at, images = 0, []
    for _ in paths:
        h, w = np.frombuffer(data, np.int32, 2, at)
        n = int(h) * int(w) * 3
        shape = (h, w, 3) if dtype == np.uint8 else (3, h, w)
        images.append(np.frombuffer(data, dtype, n, at + 8).reshape(shape))
        at += 8 + n * np.dtype(dtype).itemsize
    assert at == len(data)
    return images


def reference(path, size, crop_pct, interpolation):
    mode = transforms.InterpolationMode(interpolation)
    return F.center_crop(F.resize(Image.open(path).convert("RGB"), int(size // crop_pct), mode), size)


class Difference:
    def __init__(self):
        self.pixels = self.differing = self.largest = 0
        self.total = 0.0

    def add(self, ours, theirs):
        assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
        d = np.abs(ours.astype(np.int32) - theirs.astype(np.int32))
        self.pixels += d.shape[0] * d.shape[1]
        self.differing += int((d.max(axis=2) > 0).sum())
        self.largest = max(self.largest, int(d.max()))
        self.total += float(d.sum())

    def __str__(self):
        return (f"{100.0 * self.differing / self.pixels:.2f}% of pixels differ "
                f"(max {self.largest}, mean {self.total / self.pixels / 3:.4f})")


def logits(model, images, mean, std):
    """Of uint8 images [H, W, 3] as torchvision normalises them."""
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    with torch.no_grad():
        return torch.cat([model(torch.stack([finish(Image.fromarray(i)) for i in images[at:at + 20]]))
                          for at in range(0, len(images), 20)])


def transform_of(model):
    cfg = timm.data.resolve_data_config({}, model=model)
    return (cfg["input_size"][1], cfg["crop_pct"], cfg["interpolation"]), cfg["mean"], cfg["std"]


def models(mini):
    """Name, network, and its transform: (size, crop_pct, interpolation), mean, std."""
    for name in ("vit_small_patch16_224", "deit_small_patch16_224"):
        model = networks.vision(name, seed=11)
        yield f"{name}, random weights", model, *transform_of(model)
    model = timm.create_model(f"local-dir:{mini}", pretrained=True).eval()
    yield str(mini), model, *transform_of(model)


def compare_jpeg(tool, originals, mini):
    """Differing pixels over everything compared with this tool."""
    decode = Difference()
    setting = (224, 0.9, "bicubic")
    for path, ours in zip(originals, dump(tool, "decode", *setting, originals)):
        decode.add(ours, np.asarray(Image.open(path).convert("RGB")))
    print(f"  after decoding: {decode}")
    differing = decode.differing
    for name, model, setting, mean, std in models(mini):
        ours = dump(tool, "crop", *setting, originals)
        theirs = [np.asarray(reference(path, *setting)) for path in originals]
        crop = Difference()
        for a, b in zip(ours, theirs):
            crop.add(a, b)
        if not crop.differing:
            print(f"  {name}: after the transform no pixel differs, so no logit does", flush=True)
            continue
        got, want = logits(model, ours, mean, std), logits(model, theirs, mean, std)
        relative = (got - want).abs().amax(1) / want.abs().amax(1)
        flips = int((got.argmax(1) != want.argmax(1)).sum())
        print(f"  {name}: after the transform {crop}; logits differ by {relative.mean():.1e} of the largest on "
              f"average, {relative.max():.1e} at most; first class differs in {flips} of {len(originals)} images", flush=True)
        differing += crop.differing
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", action="append", help="dump_pixels of a build; default: both decoders'")
    parser.add_argument("--data", default=os.environ.get("BCQ_DATA", "../shared/data"),
                        help="folder that holds imagenet/")
    parser.add_argument("--mini", default="data/mini/vit")
    args = parser.parse_args()
    tools = [Path(t) for t in args.tool or
             [t for t in (BUILD / "bin/parity/dump_pixels", BUILD / "turbo/bin/parity/dump_pixels") if t.exists()]]
    originals = sorted(p for p in Path(args.data, "imagenet").glob("*/*") if p.suffix.lower() in (".jpeg", ".jpg"))
    if not originals:
        print(f"image_parity: skipped, no images in {args.data}/imagenet (--data DIR or BCQ_DATA)")
        return 0

    settings = [(224, 0.9, "bicubic"), (384, 1.0, "bicubic"), (224, 0.875, "bilinear"), (64, 1.0, "bicubic")]
    png, floats = Difference(), 0
    with tempfile.TemporaryDirectory() as tmp:
        copies = []
        for i, path in enumerate(originals):
            copies.append(Path(tmp, f"{i}.png"))
            Image.open(path).convert("RGB").save(copies[-1], compress_level=1)
        for setting in settings:
            for path, ours in zip(copies, dump(tools[0], "crop", *setting, copies)):
                png.add(ours, np.asarray(reference(path, *setting)))
        finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        for path, ours in zip(copies, dump(tools[0], "tensor", *settings[0], copies, np.float32)):
            floats += int((ours != finish(reference(path, *settings[0])).numpy()).sum())
    print(f"image_parity: {len(originals)} images; PNG: {png.differing} of {png.pixels} resized pixels differ "
          f"({len(settings)} settings), {floats} normalised values differ")
    failed = bool(png.differing or floats)
    for tool in tools:
        decoder = subprocess.run([tool, "decoder"], check=True, capture_output=True, text=True).stdout.strip()
        print(f"JPEG through {decoder}, Pillow {Image.__version__} through libjpeg-turbo "
              f"{features.version('libjpeg_turbo')}:")
        differing = compare_jpeg(tool, originals, args.mini)
        failed |= decoder.startswith("libjpeg-turbo") and differing > 0
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Compare the image pipeline with Pillow and torchvision on real images, in one line.

PNG: the samples re-saved losslessly, so only resampling and cropping are compared (target:
no differing pixel). JPEG: the originals, where the decoders differ too.
"""
import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", default="build/bin/parity/dump_pixels")
    parser.add_argument("--data", default="../shared/data", help="folder that holds imagenet/")
    args = parser.parse_args()
    originals = sorted(p for p in Path(args.data, "imagenet").glob("*/*") if p.suffix.lower() in (".jpeg", ".jpg"))
    if not originals:
        print(f"image_parity: skipped, no images in {args.data}/imagenet")
        return 0

    settings = [(224, 0.9, "bicubic"), (384, 1.0, "bicubic"), (224, 0.875, "bilinear"), (64, 1.0, "bicubic")]
    png, crop, floats = Difference(), Difference(), 0
    with tempfile.TemporaryDirectory() as tmp:
        copies = []
        for i, path in enumerate(originals):
            copies.append(Path(tmp, f"{i}.png"))
            Image.open(path).convert("RGB").save(copies[-1], compress_level=1)
        for setting in settings:
            for path, ours in zip(copies, dump(args.tool, "crop", *setting, copies)):
                png.add(ours, np.asarray(reference(path, *setting)))
        finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        for path, ours in zip(copies, dump(args.tool, "tensor", *settings[0], copies, np.float32)):
            floats += int((ours != finish(reference(path, *settings[0])).numpy()).sum())
    decode = Difference()
    for path, ours in zip(originals, dump(args.tool, "decode", *settings[0], originals)):
        decode.add(ours, np.asarray(Image.open(path).convert("RGB")))
    for path, ours in zip(originals, dump(args.tool, "crop", *settings[0], originals)):
        crop.add(ours, np.asarray(reference(path, *settings[0])))
    print(f"image_parity: {len(originals)} images; PNG: {png.differing} of {png.pixels} resized pixels differ "
          f"({len(settings)} settings), {floats} normalised values differ; JPEG: after decoding {decode}, "
          f"after resize {crop}")
    return 1 if png.differing or floats else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Make tests/fixtures/image/: small synthetic images and what Pillow and torchvision make of them.

    python tests/reference/make_image_fixtures.py        (from the repository root)

Inputs are drawn from formulas and a seeded generator. Outputs of Pillow's resize are stored
as PNG; the whole transform and the 256-value normalisation as FNV-1a hashes of float32 bytes.
Damaged variants are cut out of these files by the tests themselves.
"""
import json
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

OUT = Path("tests/fixtures/image")
MEANS = {"half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def picture(h, w, seed):
    """Waves, an edge and noise: smooth parts, ringing at the edge, values at both ends."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    waves = [127 + 120 * np.sin(0.31 * x + 0.17 * y + c) for c in range(3)]
    img = np.stack(waves, 2) + rng.randint(-25, 26, (h, w, 3))
    img[(x > 0.6 * w) & (y > 0.3 * h)] = (255, 0, 255)
    return np.clip(np.rint(img), 0, 255).astype(np.uint8)


def make_inputs():
    rgb = Image.fromarray(picture(37, 53, 1))
    gray = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray((np.arange(37 * 53) % 256).astype(np.uint8).reshape(37, 53)))
    images = {
        "rgb.png": rgb, "gray.png": gray, "rgba.png": alpha,
        "gray_alpha.png": alpha.convert("LA"),
        "palette.png": rgb.quantize(13),
        "bit.png": gray.convert("1"),
        "column.png": Image.fromarray(picture(40, 1, 2)),
        "row.png": Image.fromarray(picture(1, 40, 3)),
        "tall.png": Image.fromarray(picture(61, 19, 4)),
    }
    for name, image in images.items():
        image.save(OUT / name)
    wide = (picture(9, 14, 5).astype(np.uint16) << 8) | 0x5A
    Image.fromarray(wide[:, :, 0]).save(OUT / "gray16.png")
    large = Image.fromarray(picture(64, 80, 6))
    large.save(OUT / "baseline.jpg", quality=92)
    large.save(OUT / "progressive.jpg", quality=92, progressive=True)
    large.save(OUT / "full_chroma.jpg", quality=92, subsampling=0, restart_marker_blocks=3)
    large.convert("L").save(OUT / "gray.jpg", quality=92)
    large.convert("CMYK").save(OUT / "cmyk.jpg", quality=92)
    rgb.save(OUT / "odd.jpg", quality=92, subsampling=1)
    ycck = bytearray((OUT / "cmyk.jpg").read_bytes())
    ycck[ycck.index(b"Adobe") + 11] = 2  # the marker's transform: the same data read as YCCK
    (OUT / "ycck.jpg").write_bytes(ycck)
    jpegs = ["baseline.jpg", "progressive.jpg", "full_chroma.jpg", "odd.jpg", "gray.jpg", "cmyk.jpg", "ycck.jpg"]
    return list(images), jpegs


def main():
    if int(PIL.__version__.split(".")[0]) >= 13:
        raise SystemExit("Pillow 13 resizes in another order; see requirements.txt")
    OUT.mkdir(parents=True, exist_ok=True)
    pngs, jpegs = make_inputs()
    record = {"decode": {}, "resize": [], "transform": [], "normalise": {}}
    for name in pngs + jpegs:
        image = Image.open(OUT / name).convert("RGB")
        record["decode"][name] = {"height": image.height, "width": image.width}
        if name in jpegs:  # lossless ones are told by a hash, JPEG decoders differ by a few levels
            image.save(OUT / f"decoded_{name[:-4]}.png")
        else:
            record["decode"][name]["fnv"] = fnv(image.tobytes())
    cases = [("rgb.png", 20, 29), ("rgb.png", 37, 20), ("rgb.png", 64, 53), ("rgb.png", 70, 91), ("rgb.png", 5, 90),
             ("gray.png", 24, 24), ("palette.png", 18, 31), ("rgba.png", 25, 25), ("column.png", 9, 3),
             ("row.png", 4, 13), ("tall.png", 30, 10), ("tall.png", 1, 1)]
    modes = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for name, h, w in cases:
        for mode, code in modes.items():
            out = Image.open(OUT / name).convert("RGB").resize((w, h), code)
            file = f"resized_{name[:-4]}_{h}x{w}_{mode}.png"
            out.save(OUT / file, optimize=True)
            record["resize"].append({"input": name, "height": h, "width": w, "mode": mode, "expected": file})
    for name in ["rgb.png", "gray.png", "column.png", "row.png", "tall.png"]:
        for size, crop_pct, mode, norm in [(16, 0.9, "bicubic", "half"), (37, 1.0, "bicubic", "imagenet"),
                                           (24, 0.875, "bilinear", "imagenet"), (33, 0.95, "bicubic", "imagenet"),
                                           (20, 1.6, "bicubic", "half")]:
            mean, std = MEANS[norm]
            steps = transforms.Compose([
                transforms.Resize(int(size // crop_pct), transforms.InterpolationMode(mode)),
                transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(mean, std)])
            pixels = steps(Image.open(OUT / name).convert("RGB")).numpy()
            record["transform"].append({"input": name, "size": size, "crop_pct": crop_pct, "mode": mode, "norm": norm,
                                        "fnv": fnv(pixels.tobytes()), "first": float(pixels[0, 0, 0])})
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    for norm, (mean, std) in MEANS.items():
        record["normalise"][norm] = fnv(F.normalize(F.to_tensor(Image.fromarray(ramp)), mean, std).numpy().tobytes())
    (OUT / "image.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

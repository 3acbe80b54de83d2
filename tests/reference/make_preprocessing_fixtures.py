"""Writes tests/fixtures/preprocessing.json: image processors of transformers (numpy and Pillow, no torch) and timm's
pretrained_cfg in many settings, and what those libraries make of five drawn pictures with them.

Of each set of pixels the fixture has the FNV-1a hash of their float32 bytes, picture after picture; of timm's settings
what timm's own data/config.py resolves them to (its pixels: make_image_fixtures.py)."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 32
SIZES = [(40, 56), (57, 40), (48, 48), (31, 30), (20, 50)]  # height, width
PROCESSORS = {
    "ViT": ViTImageProcessorPil,
    "DeiT": DeiTImageProcessorPil,
    "CLIP": CLIPImageProcessorPil,
    "Bit": BitImageProcessorPil,
}


def picture(height, width):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return Image.fromarray(((y * 7 + x * 13 + c * 50 + (x * y) % 11 * 9) % 256).astype(np.uint8))


def fnv(data, h=0xCBF29CE484222325):
    for b in data:
        h = (h ^ b) * 0x100000001B3 % 2**64
    return h


def pixels(config, model_type):
    """Of every picture the hash of its pixels; "" where the library refuses, or another size comes out."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = kind or {"deit": "DeiTImageProcessor"}.get(model_type, "ViTImageProcessor")
    name = kind.replace("FeatureExtractor", "").replace("ImageProcessor", "").replace("Fast", "")
    processor = PROCESSORS[name](**{k: v for k, v in config.items() if not k.endswith("_type")})
    out = []
    for size in SIZES:
        try:
            x = np.asarray(processor(picture(*size), return_tensors="np")["pixel_values"], dtype=np.float32)
            out.append(f"{fnv(x.tobytes()):016x}" if x.shape == (1, 3, SIDE, SIDE) else "")
        except Exception:
            out.append("")
    return out


def transformers_cases():
    square = {"height": SIDE, "width": SIDE}
    base = {"image_processor_type": "ViTImageProcessor", "size": square, "resample": 2}
    vit = [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 2 / 255},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 0.00392156862745098},
        {"do_rescale": False, "do_normalize": False},
        {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 61, 62]},
        {"resample": 3},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"image_mean": 0.4, "image_std": 0.3},
        {"size": SIDE},
        {"size": [SIDE, SIDE]},
        {"size": SIDE, "default_to_square": True},
        {"size": SIDE, "default_to_square": False},
        {"size": SIDE, "default_to_square": False, "do_center_crop": True, "crop_size": SIDE},
        {"size": {"shortest_edge": SIDE}, "do_center_crop": True, "crop_size": square},
        {"size": {"shortest_edge": 37}, "do_center_crop": True, "crop_size": square},
        {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": square},
        {"size": {"shortest_edge": 36, "longest_edge": 40}, "do_center_crop": True, "crop_size": square},
        {
            "size": {"shortest_edge": 33, "longest_edge": 100},
            "do_center_crop": True,
            "crop_size": square,
            "resample": 3,
        },
        {"size": {"shortest_edge": 48, "longest_edge": 51}, "do_center_crop": True, "crop_size": [SIDE, SIDE]},
        {"size": {"max_height": 50, "max_width": 45}, "do_center_crop": True, "crop_size": square},
        {"size": {"max_height": 25, "max_width": 70}, "do_center_crop": True, "crop_size": square},
        {"size": {"height": 45, "width": 39}, "do_center_crop": True, "crop_size": square},
        {"size": {"height": 27, "width": 35}, "do_center_crop": True, "crop_size": SIDE},
        {"size": {"height": 35, "width": 35}, "do_center_crop": True, "crop_size": SIDE, "do_normalize": False},
        {"do_resize": False},
        {"do_resize": False, "do_center_crop": True, "crop_size": square},
        {"do_resize": False, "do_center_crop": True, "crop_size": square, "do_rescale": False},
        {"do_pad": False, "data_format": "channels_first"},
    ]
    cases = [("vit", {**base, **c}) for c in vit]
    cases += [
        ("swin", {**{k: v for k, v in base.items() if k != "image_processor_type"}, **c})
        for c in ({}, {"do_normalize": False, "resample": 3}, {"feature_extractor_type": "ViTFeatureExtractor"})
    ]
    crop = {"size": {"height": 36, "width": 36}, "crop_size": square}
    cases += [
        ("deit", c)
        for c in (
            crop,
            {**crop, "resample": 2},
            {"size": 37, "crop_size": SIDE},
            {**crop, "do_normalize": False},
            {**crop, "image_processor_type": "DeiTImageProcessorFast"},
            {"size": SIDE, "do_center_crop": False},
            {**crop, "feature_extractor_type": "DeiTFeatureExtractor"},
            {**crop, "rescale_factor": 1 / 256},
        )
    ]
    clip = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE}
    cases += [
        ("vit", {**c, "image_processor_type": n + "ImageProcessor"})
        for n in ("CLIP", "Bit")
        for c in (clip, {"size": 35, "crop_size": SIDE}, {**clip, "do_center_crop": False})
    ]
    return [{"model_type": t, "config": c, "pixels": pixels(c, t)} for t, c in cases]


def timm_cases(source):
    """timm/data/config.py by itself: the package around it needs torch."""
    text = (source / "data/constants.py").read_text() + (source / "data/config.py").read_text().replace(
        "from .constants", "# "
    )
    scope = {}
    exec(compile(text, "config.py", "exec"), scope)
    spec = importlib.util.spec_from_file_location("timm_pretrained", source / "models/_pretrained.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["timm_pretrained"] = module
    spec.loader.exec_module(module)
    size = [3, SIDE, SIDE]
    out = []
    for cfg in (
        {},
        {"crop_pct": 0.9},
        {"crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": size, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        {"input_size": [3, 24, 24], "test_input_size": size, "crop_pct": 0.8, "test_crop_pct": 0.95},
        {"input_size": [3, 24, 24], "test_input_size": size, "crop_pct": 0.8},
        {"input_size": size, "test_crop_pct": 1.0},
        {"interpolation": "bilinear"},
        {"interpolation": None, "crop_mode": None, "crop_pct": None},
        {"mean": None, "std": None},
        {"input_size": size, "min_input_size": [3, 16, 16], "fixed_input_size": True, "pool_size": None},
    ):
        resolved = scope["resolve_data_config"](
            {}, pretrained_cfg=vars(module.PretrainedCfg(**{"input_size": size, **cfg})), use_test_size=True
        )
        assert list(resolved["input_size"]) == size
        out.append({"config": cfg, "resolved": resolved})
    return out


if __name__ == "__main__":
    fixture = {
        "side": SIDE,
        "sizes": SIZES,
        "transformers": transformers_cases(),
        "timm": timm_cases(pathlib.Path(sys.argv[1])),
    }
    target = pathlib.Path(__file__).parents[1] / "fixtures/preprocessing.json"
    lines = ",\n".join(
        f"{json.dumps(k)}: "
        + ("[\n" + ",\n".join(json.dumps(c) for c in v) + "]" if k in ("transformers", "timm") else json.dumps(v))
        for k, v in fixture.items()
    )
    target.write_text("{" + lines + "}\n")
    print(len(fixture["transformers"]), "cases of transformers,", len(fixture["timm"]), "of timm")

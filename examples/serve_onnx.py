"""Serve a model with its maps from an ONNX file, without torch: photo in, label and overlay out.

First:  camhook export demo --topk 3 --output model_cam.onnx
Then:   python examples/serve_onnx.py model_cam.onnx photo.jpg overlay.png

Needs onnxruntime, numpy, opencv-python and pillow. The file itself says how to preprocess, and what classes are called.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import cv2
import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def preprocessed(photo: Image.Image, config: dict[str, Any]) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return the model's input (1, 3, H, W), and the part of the photo that it holds: left, top, right, bottom."""
    _, height, width = config["input_size"]
    if config["crop_mode"] != "center" or height != width:
        raise SystemExit(f"This example crops squares from the centre; the model wants {config}.")
    shortest = math.floor(height / config["crop_pct"])
    scale = shortest / min(photo.size)
    size = (int(photo.width * scale), int(photo.height * scale))
    resized = photo.resize(size, getattr(Image.Resampling, config["interpolation"].upper()))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    pixels = (pixels - np.float32(config["mean"])) / np.float32(config["std"])
    seen = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    return pixels.transpose(2, 0, 1)[None], seen


def overlay(photo: Image.Image, evidence: np.ndarray, seen: tuple[float, float, float, float]) -> Image.Image:
    """Lay a map's positive evidence over the part of the photo that the model saw."""
    left, top, right, bottom = (round(each) for each in seen)
    positive = np.maximum(evidence, 0) / max(float(evidence.max()), 1e-9)
    share = cv2.resize(positive, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    picture = np.asarray(photo).copy()
    part = picture[max(top, 0) : bottom, max(left, 0) : right]
    share, colours = share[: part.shape[0], : part.shape[1], None], colours[: part.shape[0], : part.shape[1]]
    part[:] = part * (1 - 0.6 * share) + colours * (0.6 * share)
    return Image.fromarray(picture)


def main(model: str, path: str, output: str) -> None:
    """Explain one photo."""
    session = onnxruntime.InferenceSession(model)
    about = json.loads(session.get_modelmeta().custom_metadata_map["camhook"])
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    images, seen = preprocessed(photo, about["preprocessing"])
    logits, maps = session.run(None, {"images": images})
    count = maps.shape[1]
    classes = about["classes"]
    best = list(np.argsort(-logits[0])[:count]) if isinstance(classes, str) and classes != "all" else classes
    best = range(count) if classes == "all" else best
    for c, evidence in zip(best, maps[0], strict=True):
        score, offset = logits[0, c], logits[0, c] - evidence.mean()
        print(f"{about['class_names'][c]}: score {score:+.2f}, of which {offset:+.2f} belongs to no position")
    overlay(photo, maps[0, 0], seen).save(output)
    print(f"Wrote {output}.")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])

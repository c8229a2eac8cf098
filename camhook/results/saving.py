"""Write a result to files: pictures that say who made them, raw maps, and a manifest that is written last."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from camhook.errors import OutputError
from camhook.files import SOFTWARE, check_overwrite, save_png, write_bytes
from camhook.results.result import CAMResult

__all__ = ["manifest", "save", "save_one"]


def save(result: CAMResult, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
    """Write a result as PNG or into a directory; see `CAMResult.save`."""
    target = Path(path)
    if target.suffix.lower() == ".png":
        pictures = [(_numbered(target, i, len(result)), i) for i in range(len(result))]
        check_overwrite([file for file, _ in pictures], overwrite=overwrite)
        several = result.target.shape[1] > 1
        for file, i in pictures:
            save_png(result[i].figure() if several else result.overlay(i), file, overwrite=overwrite)
        return [str(file) for file, _ in pictures]
    if target.suffix and not target.is_dir():
        raise OutputError(f"{target}: a path that ends in .png or a directory was expected, found {target.suffix!r}.")
    plans = [_files(result, i, target) for i in range(len(result))]
    if clashes := {str(f) for plan in plans for f in plan if sum(f in other for other in plans) > 1}:
        raise OutputError(f"Two images would be written to {min(clashes)}. Give them different file names.")
    check_overwrite([file for plan in plans for file in plan], overwrite=overwrite)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The directory {target} cannot be made: {error}. Choose another path.") from error
    for i, files in enumerate(plans):
        _write_set(result, i, files)
    return [str(file) for plan in plans for file in plan]


def save_one(
    result: CAMResult, directory: Path, *, facts: Mapping[str, Any], overlays: bool = True, overwrite: bool = False
) -> None:
    """Write the files of a result of one image into a directory that is there.

    Parameters
    ----------
    facts
        What its manifest says besides: by what settings it was made, and of which photo. A manifest that is there is
        removed before another file is written, so that none ever speaks of files that it was not made with.
    overlays
        Draw, and write what is drawn; else there are the raw maps and the manifest.

    Raises
    ------
    OutputError
        If a file is there that camhook did not write, or one cannot be written.
    """
    files = _files(result, 0, directory, overlays=overlays)
    check_overwrite(files, overwrite=overwrite)
    try:
        files[-1].unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{files[-1]} cannot be replaced: {error}. Choose another directory.") from error
    _write_set(result, 0, files, facts)


def manifest(result: CAMResult, index: int, files: list[str]) -> dict[str, Any]:
    """Return what there is to say about one image's maps, in plain types."""
    geometry = result.geometries[index]
    return {
        "software": SOFTWARE,
        "versions": {name: version(name) for name in ("camhook", "torch", "timm", "numpy")},
        "image": result.names[index],
        "photo_size": geometry.photo_size,
        "input_size": geometry.input_size,
        "input_scale": geometry.scale,
        "input_offset": geometry.offset,
        "model": result.model_name,
        "explains": result.explains,
        "method": result.method,
        "head": result.head,
        "target_layer": result.target_layer,
        "unit": "logits",
        "classes": [
            {
                "index": int(result.target[index, j]),
                "name": result.label(index, j),
                "score": float(result.scores[index, j]),
                "offset": float(result.offset[index, j]),
                "offset_share": float(result.offset_share[index, j]),
                "completeness_error": float(result.completeness_error[index, j]),
                "exact": bool(result.exact[index, j]),
            }
            for j in range(result.target.shape[1])
        ],
        "files": files,
    }


def _files(result: CAMResult, index: int, directory: Path, *, overlays: bool = True) -> list[Path]:
    """Return an image's overlays, its raw maps and last its manifest."""
    stem = result.names[index]
    classes = [(int(c), result.label(index, j)) for j, c in enumerate(result.target[index])] if overlays else []
    pictures = [
        directory / f"{stem}.{c}-{re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')}.png" for c, label in classes
    ]
    return [*pictures, directory / f"{stem}.npz", directory / f"{stem}.json"]


def _write_set(result: CAMResult, index: int, files: list[Path], facts: Mapping[str, Any] | None = None) -> None:
    *overlays, raw, last = files
    for file, target in zip(overlays, result.target[index].tolist() if overlays else [], strict=True):
        save_png(result.overlay(index, target), file, overwrite=True)
    arrays: Mapping[str, Any] = {
        "maps": result.maps[index].cpu().numpy(),
        "offset": result.offset[index].cpu().numpy(),
        "target": result.target[index].cpu().numpy(),
        "scores": result.scores[index].cpu().numpy(),
        "software": np.array(SOFTWARE),
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write_bytes(raw, packed.getvalue())
    text = json.dumps(manifest(result, index, [f.name for f in files[:-1]]) | dict(facts or {}), indent=2)
    write_bytes(last, text.encode())


def _numbered(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_stem(f"{path.stem}_{index}")

"""Files of a model with its maps: ONNX, and torch's own exported program; measured before they are believed."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from camhook.errors import DependencyError, OutputError, UnsupportedModelError
from camhook.exporting.making import batch_for
from camhook.exporting.modules import MapModule
from camhook.files import SOFTWARE, refuse_strangers, replacing_file

if TYPE_CHECKING:
    from camhook.cam import CAM

__all__ = ["Exported", "metadata", "write"]

SUFFIXES = (".onnx", ".pt2")
_ALLOWED = 1e-3  # a larger deviation, relative to the largest value, is no rounding
_ONNX_LIMIT = 2**31 - 2**20  # a protobuf file holds no more


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : Path
        The file.
    input_shape : tuple of int
        (C, H, W) of the images it takes, in batches of any size.
    classes : tuple of int or str
        Whose maps it gives.
    deviation : float or None
        How far its logits and maps were from the CAM's own, in logits, on random images in batches of one and three;
        None if that was not measured, since ONNX Runtime is not installed.
    """

    path: Path
    input_shape: tuple[int, ...]
    classes: tuple[int, ...] | str
    deviation: float | None

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        found = (
            "not verified: onnxruntime is not installed"
            if self.deviation is None
            else f"run again, its logits and maps are the CAM's own within {self.deviation:.1e} logits"
        )
        return f"{self.path}: images (batch, {shape}) to logits and maps of {_named(self.classes)}; {found}."


def write(module: MapModule, path: str | os.PathLike[str], about: Mapping[str, Any], *, overwrite: bool) -> Exported:
    """Write a module to an ``.onnx`` or ``.pt2`` file, and run that again to see that it gives the same.

    Parameters
    ----------
    about
        What to write of the model into the file, in types that JSON has.

    Raises
    ------
    OutputError
        If a file is there that camhook did not write, or the path cannot be written to.
    UnsupportedModelError
        If the model cannot be written in this format, or does something else when it is run from the file.
    DependencyError
        If ONNX is asked for and its packages are not installed.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise OutputError(f"{target}: a path that ends in {' or '.join(SUFFIXES)} was expected.")
    refuse_strangers([target], _is_ours, overwrite=overwrite)
    with warnings.catch_warnings():  # the exporters warn of matters between them and torch
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module, (batch_for(module, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
        deviation = _write_onnx(module, program, target, about) if target.suffix == ".onnx" else None
        if target.suffix == ".pt2":
            with replacing_file(target) as partial, open(partial, "wb") as stream:
                torch.export.save(program, stream, extra_files={SOFTWARE: json.dumps(about)})
            loaded = torch.export.load(str(target)).module()
            deviation = _deviation(module, lambda images: loaded(images), target)
    return Exported(target, module.input_shape, module.classes, deviation)


def metadata(cam: CAM, module: MapModule) -> dict[str, Any]:
    """Return what whoever runs the file needs to know: preprocessing, classes, units."""
    config = cam.preprocessing.config if cam.preprocessing else None
    kept = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    names = cam.class_names
    return {
        "software": SOFTWARE,
        "version": version("camhook"),
        "explains": cam.describe().as_dict(),
        "head": str(cam.plan_for((module.input_shape[1], module.input_shape[2])).head),
        "classes": module.classes,
        "class_names": [names.label(i) for i in range(len(names))],
        "preprocessing": None if config is None else {key: config[key] for key in kept if key in config},
        "unit": "logits: a map's mean over positions plus its offset is the logit",
    }


def _write_onnx(module: MapModule, program: Any, target: Path, about: Mapping[str, Any]) -> float | None:
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise DependencyError(f'ONNX needs {" and ".join(missing)}: pip install "camhook[onnx]". Or write a .pt2 file.')
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > _ONNX_LIMIT:
        raise UnsupportedModelError(
            f"The weights take {size / 2**30:.1f} GiB, an ONNX file holds 2: write a .pt2 file."
        )
    from torch.onnx import OnnxExporterError

    try:
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits", "maps"]
        )
    except (OnnxExporterError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UnsupportedModelError(
            f"ONNX has no way to say a step of this model: {reason} Write a .pt2 file."
        ) from error
    assert made is not None
    made.model.metadata_props[SOFTWARE] = json.dumps(about)
    with replacing_file(target) as partial:
        made.save(partial)
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    return _deviation(
        module,
        lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.cpu().numpy()})],
        target,
    )


def _deviation(module: MapModule, run: Any, target: Path) -> float:
    """Return how far what the file gives is from what the module gives, at the most."""
    largest = 0.0
    for size in (1, 3):
        images = batch_for(module, size)
        with torch.no_grad():
            for expected, found in zip(module(images), run(images), strict=True):
                error = float((expected.cpu() - found.cpu()).abs().max())
                largest = max(largest, error)
                if not error <= _ALLOWED * max(1.0, float(expected.abs().max())):
                    target.unlink()
                    raise UnsupportedModelError(
                        f"Run from {target}, the model misses its own logits and maps by {error:.2g}; the file was "
                        "removed. Its steps do something else there than in torch."
                    )
    return largest


def _is_ours(path: Path) -> bool:
    if path.suffix == ".pt2":
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(f"extra/{SOFTWARE}") for name in archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return False
    with open(path, "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(-min(stream.tell(), 2**20), os.SEEK_END)
        return f'"software": "{SOFTWARE}"'.encode() in stream.read()


def _named(classes: tuple[int, ...] | str) -> str:
    if isinstance(classes, str):
        return f"{classes} classes" if classes == "all" else f"the {classes} classes"
    return f"classes {', '.join(map(str, classes))}"

"""Files of a model with its maps, ONNX or torch's exported program, verified by running them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camhook.errors import DependencyError, OutputError, UnsupportedModelError
from camhook.exporting.modules import MapModule
from camhook.files import SOFTWARE, atomic_write, check_overwrite
from camhook.targets import ClassNames

__all__ = ["Exported", "metadata", "write"]

SUFFIXES = (".onnx", ".pt2")
_ALLOWED = 1e-3  # a deviation larger than this, relative to the largest value, is more than rounding
_ONNX_LIMIT = 2**31 - 2**20  # bytes of weights that fit in a protobuf file


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes
    ----------
    path : Path
        The file.
    input_shape : tuple of int
        (C, H, W) of its input images, in batches of any size.
    classes : tuple of int or str
        Classes of its maps; see `MapModule`.
    deviation : float or None
        Largest absolute difference, in logits, between its logits and maps and the CAM's own, on random images in
        batches of one and three; None if it was not measured because ONNX Runtime is not installed.
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
    """Write a module to an ``.onnx`` or ``.pt2`` file, after verifying that the file gives the same logits and maps.

    Parameters
    ----------
    module
        What to write.
    path
        Where to; the suffix says in which format.
    about
        Metadata of the file, in types that JSON has; see `metadata`.
    overwrite
        Replace a file that camhook did not write.

    Raises
    ------
    OutputError
        If a file is there that camhook did not write, or the path cannot be written to.
    UnsupportedModelError
        If the model cannot be written in this format, or the file gives other logits or maps; nothing is left then.
    DependencyError
        If ONNX is asked for and its packages are not installed.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise OutputError(f"{target}: a path that ends in {' or '.join(SUFFIXES)} was expected.")
    check_overwrite([target], overwrite=overwrite)
    with warnings.catch_warnings():  # deprecations within torch's exporters, which users cannot act on
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module, (_random_images(module, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
        write_verified = _write_onnx if target.suffix == ".onnx" else _write_pt2
        with atomic_write(target) as partial:
            deviation = write_verified(module, program, partial, about)
    return Exported(target, module.input_shape, module.classes, deviation)


def metadata(
    module: MapModule,
    *,
    explains: Mapping[str, Any],
    head: str,
    class_names: ClassNames,
    data_config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what a user of the file needs to know: preprocessing, classes, units.

    Parameters
    ----------
    explains
        The model's `Description` as a dictionary.
    head
        Kind of its head, such as ``"mean/linear"``.
    class_names
        Names of the classes of its logits.
    data_config
        How to preprocess photos, in timm's words; None if that is not known.
    """
    kept = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {
        "software": SOFTWARE,
        "version": version("camhook"),
        "explains": dict(explains),
        "head": head,
        "classes": module.classes,
        "class_names": [class_names.label(i) for i in range(len(class_names))],
        "preprocessing": None if data_config is None else {key: data_config[key] for key in kept if key in data_config},
        "unit": "logits: a map's mean over positions plus its offset is the logit",
    }


def _write_pt2(module: MapModule, program: Any, path: Path, about: Mapping[str, Any]) -> float:
    with open(path, "wb") as stream:  # a path would have to end in .pt2
        torch.export.save(program, stream, extra_files={SOFTWARE: json.dumps(about)})
    with open(path, "rb") as stream:
        return _deviation(module, torch.export.load(stream).module())


def _write_onnx(module: MapModule, program: Any, path: Path, about: Mapping[str, Any]) -> float | None:
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
        raise UnsupportedModelError(f"ONNX lacks an operation of this model: {reason} Write a .pt2 file.") from error
    assert made is not None
    made.model.metadata_props[SOFTWARE] = json.dumps(about)
    made.save(path)
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _deviation(
        module,
        lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.cpu().numpy()})],
    )


def _random_images(module: MapModule, size: int) -> Tensor:
    """Return a batch (size, C, H, W) in the dtype and on the device of the module."""
    reference = next(t for t in module.state_dict().values() if t.is_floating_point())
    generator = torch.Generator().manual_seed(size)
    return torch.randn((size, *module.input_shape), generator=generator).to(reference)


def _deviation(module: MapModule, run: Callable[[Tensor], Sequence[Tensor]]) -> float:
    """Return the largest absolute difference between the outputs of the module and of the file."""
    largest = 0.0
    for size in (1, 3):
        images = _random_images(module, size)
        with torch.no_grad():
            for expected, found in zip(module(images), run(images), strict=True):
                error = float((expected.cpu() - found.cpu()).abs().max())
                largest = max(largest, error)
                if not error <= _ALLOWED * max(1.0, float(expected.abs().max())):
                    raise UnsupportedModelError(
                        f"Run from the file, the model misses its own logits and maps by {error:.2g}; no file was "
                        "written. One of its operations does something else in that format than in torch."
                    )
    return largest


def _named(classes: tuple[int, ...] | str) -> str:
    if isinstance(classes, str):
        return f"{classes} classes" if classes == "all" else f"the {classes} classes"
    return f"classes {', '.join(map(str, classes))}"

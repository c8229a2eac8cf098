"""A computation of logits and maps recorded as one plain module, and that module written to a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from camhook.engine.description import Description
from camhook.engine.explanation import Explanation
from camhook.engine.reader import ModelReader
from camhook.exporting.files import Exported, metadata, write
from camhook.exporting.modules import MapModule, classes_of, record
from camhook.targets import ClassNames

__all__ = ["Explainer", "export", "record_module"]


class Explainer(Protocol):
    """What is recorded; a `CAM` of a structural copy is one: running on fake tensors may change what a model caches."""

    reader: ModelReader

    @property
    def class_names(self) -> ClassNames:
        """Names of the classes that are explained."""
        ...

    def explanation(
        self, images: Tensor, method: str | None = None, *, secant_dtype: torch.dtype | None = None
    ) -> Explanation:
        """Explain preprocessed images (B, C, H, W)."""
        ...


def record_module(
    explainer: Explainer,
    target: Any,
    topk: int | None,
    input_size: Sequence[int] | None,
    *,
    secant_dtype: torch.dtype | None = None,
) -> MapModule:
    """Record logits and maps of a model as a graph; see `CAM.module`.

    ``secant_dtype`` is the precision in which activations are linearised.
    """
    reader = explainer.reader
    height, width = input_size or reader.plan.input_size
    reader.plan_for((height, width))
    named: list[tuple[int, ...] | str] = []

    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        explanation = explainer.explanation(images, secant_dtype=secant_dtype)
        classes, names = classes_of(target, topk, explanation.logits, explanation.class_names)
        named.append(names)
        with torch.no_grad():
            return explanation.logits, explanation.maps(classes, every=names == "all")

    shape = (reader.in_chans, height, width)
    graph = record(compute, reader.model, shape, like=reader.reference, name=reader.name)
    return MapModule(graph, shape, named[0])


def export(
    explainer: Explainer,
    path: str | os.PathLike[str],
    target: Any,
    topk: int | None,
    input_size: Sequence[int] | None,
    *,
    overwrite: bool,
) -> Exported:
    """Record a module and write it to a file; see `CAM.export`."""
    # ONNX Runtime implements few operators in double precision.
    secant_dtype = torch.float32 if os.fspath(path).endswith(".onnx") else None
    module = record_module(explainer, target, topk, input_size, secant_dtype=secant_dtype)
    reader = explainer.reader
    plan = reader.plan_for((module.input_shape[1], module.input_shape[2]))
    about = metadata(
        module,
        explains=Description.of(reader.name, reader.plan).as_dict(),
        head=str(plan.head),
        class_names=explainer.class_names,
        data_config=reader.preprocessing.config if reader.preprocessing else None,
    )
    return write(module, path, about, overwrite=overwrite)

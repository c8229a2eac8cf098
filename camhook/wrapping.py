"""`wrap`: from a trained classifier to a `CAM`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from camhook.adapters.base import Adapter
from camhook.cam import CAM
from camhook.engine.reader import ModelReader
from camhook.engine.tail import Output
from camhook.fitting.probe import Probe

__all__ = ["wrap"]


def wrap(
    model: nn.Module,
    *,
    method: str = "auto",
    probe: Probe | str | os.PathLike[str] | None = None,
    adapter: Adapter | None = None,
    target_layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    data_config: Any = None,
    input_size: tuple[int, int] | None = None,
    output: Output | str | int | None = None,
    strict: bool = False,
) -> CAM:
    """Wrap a trained classifier, so that calling the result shows where in a picture its scores come from.

    The model is neither run nor changed. Where and how the map is read is found on a copy without values.

    Parameters
    ----------
    model
        Any timm, torchvision or transformers image classifier, or a similar module.
    method
        ``"cam"``: the model's own head; ``"probe"``: a probe on its features; ``"auto"``: the head, unless there is
        none or the probe was fitted on labels.
    probe
        A probe, or the path of one, as `CAM.fit` returns it.
    adapter
        How features become positions, where camhook should not find out by itself.
    target_layer
        The layer whose output is read, by name or as a module; ``"input of NAME"``: its input. Several: the map is the
        sum of theirs, joined by overlap area, if the score reads each of them by a path of its own.
    class_names
        Names in order or by index; default those that come with the model or with `data_config`.
    data_config
        How photos are preprocessed: timm's dictionary; a member of a torchvision weights enum, or its transform; an
        image processor of transformers, or its configuration. Default the model's own, if it is timm's.
    input_size
        (height, width) of the model's input in pixels; default read off the model, else off the first call.
    output
        How to get the logits from what the model returns: an index, a key or attribute name, or a function.
    strict
        Raise `CompletenessError` for a map that misses the model's score by more than rounding.

    Raises
    ------
    UnsupportedModelError
        If no place is found where the model's score is a sum over positions; it lists what was tried.
    LayoutError
        If `target_layer` is no layer of the model, or returns no tensor.

    Examples
    --------
    >>> import timm, torch
    >>> cam = wrap(timm.create_model("test_convnext"))
    >>> result = cam(torch.zeros(1, 3, 160, 160))
    >>> result.maps.shape, bool(result.exact)
    (torch.Size([1, 1, 5, 5]), True)
    """
    reader = ModelReader(
        model,
        adapter=adapter,
        target_layer=target_layer,
        class_names=class_names,
        data_config=data_config,
        input_size=input_size,
        output=output,
    )
    if reader.input_size is not None:
        reader.plan_for(reader.input_size)
    if probe is not None and not isinstance(probe, Probe):
        probe = Probe.load(probe)
    return CAM(reader, probe=probe, method=method, strict=strict)

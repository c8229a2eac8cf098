"""From a CAM to a plain module: which classes, and the engine's own computation of their maps, recorded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camhook.adapters.timm import model_name
from camhook.decompose.secants import single_precision
from camhook.errors import UnsupportedModelError
from camhook.exporting.modules import MapModule, record
from camhook.targets import class_index, resolve_targets

if TYPE_CHECKING:
    from camhook.cam import CAM

__all__ = ["batch_for", "map_module"]


def map_module(
    cam: CAM, target: Any, topk: int | None, input_size: Sequence[int], *, method: str, single: bool = False
) -> MapModule:
    """Record a CAM's computation; see `CAM.module`.

    Parameters
    ----------
    cam
        Of a copy of the model, which may be changed by running on tensors without values.
    single
        Compute all of it in the model's own precision, secants too: ONNX Runtime has few steps in double precision.
    """
    if target is None and topk is None:
        topk = 1
    shape = (cam.in_chans, *input_size)
    chosen: list[tuple[int, ...] | str] = []

    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        with cam.accounted(images, method) as accounted:
            logits, account = accounted.logits, accounted.account
            if isinstance(target, str) and target == "all":
                chosen.append("all")
                if not account.widens:
                    raise UnsupportedModelError(
                        "The maps of all classes at once cannot be recorded for this tail, which meets the picture "
                        "again on its way. Ask for some classes, or topk=."
                    )
                return logits, account.all_maps()
            if target is None or topk is not None:
                chosen.append(f"top {topk}")
                return logits, account.maps(resolve_targets(target, topk, logits, accounted.class_names))
            listed = target if isinstance(target, list | tuple) else [target]
            indices = [class_index(each, logits.shape[1], accounted.class_names) for each in listed]
            chosen.append(tuple(indices))
            classes = torch.tensor([indices], device=logits.device)
            return logits, account.maps(classes.expand(logits.shape[0], -1))

    with single_precision() if single else nullcontext():
        graph = record(compute, cam.model, shape, like=cam.reference, name=model_name(cam.model))
    return MapModule(graph, shape, chosen[-1])


def batch_for(module: MapModule, size: int) -> Tensor:
    """Return random images that the module takes, (size, C, H, W)."""
    reference = next(t for t in module.state_dict().values() if t.is_floating_point())
    generator = torch.Generator().manual_seed(size)
    return torch.randn((size, *module.input_shape), generator=generator).to(reference)

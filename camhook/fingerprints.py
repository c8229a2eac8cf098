"""Hashes of a model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import torch
from torch import nn

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module, *, skip: Collection[str] = ()) -> str:
    """Return a hash of a model's parameters and buffers: their names, types, shapes and bytes.

    Parameters
    ----------
    skip
        Names of modules that features do not depend on: the head.

    Notes
    -----
    Casting a model changes its weights, so the hash names the precision: ``"sha256:9f86d081884c7d65:float32"``.
    Wrappers (``torch.compile``, DataParallel) do not count; neither does how many batches a norm has seen.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    >>> before = fingerprint(model, skip=["1"])
    >>> _ = nn.init.zeros_(model[1].weight)
    >>> fingerprint(model, skip=["1"]) == before, fingerprint(model.double(), skip=["1"]) == before
    (True, False)
    """
    digest, precisions = hashlib.sha256(), set()
    for name, value in sorted(model.state_dict().items()):
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        if name.endswith("num_batches_tracked") or any(f"{name}.".startswith(f"{module}.") for module in skip):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        if value.is_floating_point():
            precisions.add(str(value.dtype).removeprefix("torch."))
    return f"sha256:{digest.hexdigest()[:32]}:{'+'.join(sorted(precisions))}"

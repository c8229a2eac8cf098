"""New weights for old layers, from the head down: the order they run in, and how each starts anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from camhook.errors import CamhookError

__all__ = ["layers_below", "layers_from_the_head", "reset"]


def layers_from_the_head(network: nn.Module, images: Tensor) -> list[str]:
    """List the modules that own parameters, the last to start first; one that never runs itself goes with its parent.

    `nn.MultiheadAttention`, for one, uses its output layer's weights without calling it.
    """
    started: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: started.append(name))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    first = {name: place for place, name in reversed(list(enumerate(started)))}

    def place(name: str) -> int:
        while name not in first:
            name = name.rpartition(".")[0]
        return first[name]

    owners = [
        name for name, module in network.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    if not owners:
        raise CamhookError("Found a model without parameters, expected some to randomise; this check is not for it.")
    owners.reverse()
    return sorted(owners, key=place, reverse=True)


def layers_below(network: nn.Module, names: Sequence[str]) -> list[str]:
    """List the modules that own parameters in these modules, themselves included.

    Raises
    ------
    CamhookError
        A name is no module, or has no parameters.
    """
    found: list[str] = []
    modules = dict(network.named_modules())
    for name in names:
        below = [
            inner
            for inner, module in modules.items()
            if (inner == name or inner.startswith(f"{name}.") or not name)
            and next(module.parameters(recurse=False), None) is not None
        ]
        if name not in modules or not below:
            known = ", ".join(inner for inner, _ in network.named_children())
            raise CamhookError(f"Found no parameters in a module {name!r}, expected a name such as {known}.")
        found += below
    return found


def reset(module: nn.Module) -> None:
    """Start a module's own parameters anew: ``reset_parameters``, else a normal of the same mean and deviation."""
    start_anew = getattr(module, "reset_parameters", None)
    if callable(start_anew):
        start_anew()
        return
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            deviation = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            parameter.normal_(float(parameter.mean()), float(deviation))

"""What one forward pass tells about a path of class tokens: where they set out, and what they read on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from camhook.engine.attention import Attentions, Read
from camhook.engine.class_tokens import TokenPath
from camhook.engine.hooks import hooked
from camhook.engine.tracing import Trace
from camhook.errors import HookError

__all__ = ["Recording", "blank", "recording"]


class Recording:
    """What one forward pass told about a token path.

    Attributes
    ----------
    rows : list of Tensor
        The prefix tokens (B, prefix, C) where they set out, for each sequence.
    weights, values : list of Tensor
        For each read, the prefix tokens' attention weights (B, heads, prefix, keys) and the values (B, heads, keys, d).
    """

    def __init__(self, path: TokenPath) -> None:
        self.rows: list[Tensor] = []
        self.weights: list[Tensor] = [torch.empty(0)] * len(path.reads)
        self.values: list[Tensor] = [torch.empty(0)] * len(path.reads)
        self._at = {read.index: i for i, read in enumerate(path.reads)}
        self._prefix = path.prefix
        self._calls: list[tuple[int, Any]] = []

    @torch.no_grad()
    def note(self, read: Read) -> None:
        """Keep an attention call's weights and values, if it is one of the path's."""
        if (i := self._at.get(read.index)) is not None:
            with torch.autocast(read.values.device.type, enabled=False):
                self.weights[i] = read.weights(self._prefix).detach()
                self.values[i] = read.values.detach().clone()  # a copy, for it is a view of something far larger

    def note_call(self, i: int, args: Any, kwargs: Any) -> None:
        """Keep what an `nn.MultiheadAttention` was called with."""
        self._calls.append((i, tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (args, kwargs))))

    def complete(self, module: nn.Module, path: TokenPath) -> None:
        """Run the attention modules that were called, on the prefix tokens only, to read off weights and values.

        Raises
        ------
        HookError
            If the forward pass did not go the expected way.
        """
        modules = dict(module.named_modules())
        for i, (args, kwargs) in self._calls:
            name = path.reads[i].module
            assert name is not None
            (query, *rest), index = args, path.reads[i].index
            with torch.no_grad(), Attentions(lambda read, index=index: self.note(replace(read, index=index))):  # type: ignore[misc]
                modules[name](query[:, : self._prefix], *rest, **kwargs)
        self.rows, self.weights, self.values = (
            [each.clone() if each.is_inference() else each for each in kept]  # the pass may have run in inference mode
            for kept in (self.rows, self.weights, self.values)
        )
        if not self.rows or not all(weights.ndim > 1 for weights in self.weights):
            raise HookError(
                f"The forward pass did not go the way of the class tokens, from the input of {path.entry} through "
                f"{len(path.reads)} attention calls. Was the model changed, compiled or scripted after wrapping? "
                "Wrap it again."
            )


@contextmanager
def recording(model: nn.Module, path: TokenPath) -> Iterator[Recording]:
    """Record what class tokens read while the model runs; the pass is not changed."""
    recorded = Recording(path)

    def set_out(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if path.is_sequence(leaf)]
        recorded.rows = [leaf[:, : path.prefix].detach().clone() for leaf in leaves]

    hooks: list[tuple[str, str, Callable[..., Any]]] = [(path.entry, "input", set_out)]
    for i, read in enumerate(path.reads):
        if read.module is not None:

            def call(_: nn.Module, args: Any, kwargs: Any, i: int = i) -> None:
                recorded.note_call(i, args, kwargs)

            hooks.append((read.module, "input", call))
    watching = ExitStack()  # an attention mode, while the model itself runs: others may run in the block

    def start(*_: Any) -> None:
        watching.enter_context(Attentions(recorded.note))

    def stop(*_: Any) -> None:
        watching.close()

    if any(read.module is None for read in path.reads):
        hooks = [("", "input", start), *hooks, ("", "output", stop)]
    with watching, hooked(model, hooks):
        yield recorded


def blank(found: Trace, path: TokenPath) -> tuple[Recording, list[Tensor]]:
    """Return what a forward pass would record, and what the class tokens would read, as mere shapes."""
    recorded = Recording(path)
    calls = {call.index: call for call in found.attentions}
    shapes = dict(calls[path.reads[0].index].modules)[path.entry]

    def shape(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float64, device="meta")

    recorded.rows = [shape(b, path.prefix, c) for b, length, c in shapes if length in path.lengths]
    values = [calls[read.index].values for read in path.reads]
    recorded.weights = [shape(*v[:-2], path.prefix, v[-2]) for v in values]
    return recorded, [shape(*v[:-2], path.prefix, v[-1]) for v in values]

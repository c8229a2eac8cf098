"""Class tokens: their path through a transformer, run on the prefix tokens alone.

A class token reads patches in every attention. What it reads at position p is its attention weight there times the
value there, and everything that follows, block by block, happens to the few prefix tokens alone. So the tail of such a
model is run on its prefix tokens: each sequence of tokens is truncated to these before a block and padded with zeros
behind it, and each attention returns what these tokens read of each other, as in the model, plus what they read of the
patches, as captured in the forward pass. That sum over positions is the input of the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from camhook.adapters.base import Layout
from camhook.engine.attention import AttentionCall, AttentionCalls
from camhook.engine.hooks import hooked

__all__ = ["ClassTokenCall", "TokenPath"]


@dataclass(frozen=True)
class ClassTokenCall:
    """One attention call in which class tokens read patches.

    Attributes
    ----------
    index
        Number of the attention call in the forward pass.
    grid_size
        Grid (h, w) of the patches that are read.
    module
        The `nn.MultiheadAttention` that makes it, if one does: a torch-function mode would disable its fast path.
    """

    index: int
    grid_size: tuple[int, int]
    module: str | None


@dataclass(frozen=True)
class TokenPath:
    """The path of the class tokens of a model.

    Attributes
    ----------
    layout
        Layout of the sequences.
    calls
        The attention calls in which they read patches.
    lengths
        Lengths of the sequences, prefix included.
    shape
        Length and channels (L, C) of the first sequence.
    entry
        The module at whose input the path starts.
    tail_calls
        Numbers of all attention calls from there on; modules that are finished before are not run with the tail.
    truncated
        Modules that are given sequences truncated to their prefix, and for each tensor they return, the number of the
        given sequence that it is as long as (None: it is no sequence). Without any, the tail is a whole forward pass.
    readers
        Those of them in which class tokens read, in order.
    """

    layout: Layout
    calls: tuple[ClassTokenCall, ...]
    lengths: frozenset[int]
    shape: tuple[int, ...]
    entry: str
    tail_calls: tuple[int, ...]
    truncated: Mapping[str, tuple[int | None, ...]]
    readers: tuple[str, ...] = ()

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens at the start of each sequence are no patches."""
        return self.layout.num_prefix_tokens

    def is_sequence(self, value: Any) -> bool:
        """Tell whether something is a tensor of prefix tokens and patches, (B, length, C)."""
        return isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] in self.lengths

    @contextmanager
    def run_prefix_only(
        self, module: nn.Module, prefix: Sequence[Tensor], weights: Sequence[Tensor], reads: Sequence[Tensor]
    ) -> Iterator[None]:
        """Have the model run on its prefix tokens alone within the block.

        Parameters
        ----------
        prefix
            These tokens at the start of the path, (B, P, C) for each sequence.
        weights
            Their attention weights in each call, (B, heads, P, keys).
        reads
            What they read of the positions in each, (B, heads, P, d).
        """
        count, entered = self.num_prefix_tokens, False
        known = {call.index: each for call, *each in zip(self.calls, reads, weights, strict=True)}

        def substitute(call: AttentionCall) -> Tensor | None:
            number = self.tail_calls[call.index]
            if number not in known:
                return None
            of_positions, of_prefix = known[number]
            values = call.values[..., :count, :].to(of_positions.dtype)
            result = of_prefix[..., :count] @ values + of_positions
            queries = count if call.values.shape[-2] == count else call.queries
            return F.pad(result, (0, 0, 0, queries - count)) if queries > count else result

        def before(name: str) -> Callable[..., Any]:
            def truncate(_: nn.Module, args: Any, kwargs: Any) -> Any:
                nonlocal entered
                first = iter(prefix) if name == self.entry and not entered else None
                entered = entered or name == self.entry
                found: list[int] = []

                def shortened(value: Any) -> Any:
                    if not self.is_sequence(value):
                        return value
                    found.append(value.shape[1])
                    short = value[:, :count] if first is None else next(first)
                    return short if name in self.truncated else F.pad(short, (0, 0, 0, value.shape[1] - count))

                changed = tree_map(shortened, (args, kwargs))
                lengths.append(found)
                return changed

            return truncate

        def after(name: str) -> Callable[..., Any]:
            def pad(_: nn.Module, args: Any, output: Any) -> Any:
                given, each = lengths.pop(), iter(self.truncated[name])

                def padded(value: Any) -> Any:
                    if not isinstance(value, Tensor) or (sequence := next(each)) is None:
                        return value
                    if value.shape[1] != count:
                        raise RuntimeError("a truncated sequence has grown again")
                    length = given[sequence]  # behind a single token a view will do: nothing reads what is there
                    return value.expand(-1, length, -1) if count == 1 else F.pad(value, (0, 0, 0, length - count))

                return tree_map(padded, output) if given else None

            return pad

        lengths: list[list[int]] = []
        hooks: list[tuple[str, str, Callable[..., Any]]] = []
        hooks += [(name, "input", before(name)) for name in dict.fromkeys((self.entry, *self.truncated))]
        hooks += [(name, "output", after(name)) for name in self.truncated]
        with hooked(module, hooks), PrefixOnly(), AttentionCalls(substitute):
            yield


class PrefixOnly(TorchFunctionMode):
    """Mode that cuts what is as long as a whole sequence (rotary embeddings, position biases) to the prefix it meets.

    Prefix tokens come first, so the first rows are theirs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            name = getattr(func, "__name__", "").strip("_")
            if name in ("mul", "add", "sub", "where", "addcmul") and not _broadcasts(args[0].shape, args[1].shape):
                args = (_cut_to(args[0], args[1]), _cut_to(args[1], args[0]), *args[2:])
        return func(*args, **(kwargs or {}))


def _broadcasts(first: torch.Size, second: torch.Size) -> bool:
    for a, b in zip(reversed(first), reversed(second), strict=False):  # noqa: SIM110 (faster than a generator)
        if a != b and a != 1 != b:
            return False
    return True


def _cut_to(value: Tensor, other: Tensor) -> Tensor:
    for d in range(1, min(value.ndim, other.ndim) + 1):
        if 1 != value.shape[-d] > other.shape[-d] != 1:
            value = value.narrow(-d, 0, other.shape[-d])
    return value

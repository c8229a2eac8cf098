"""The path of class tokens through a transformer: what they read of the picture, block by block, and where it leads.

A class token reads patches in every attention. What it reads at position p is its attention weight there times the
value there, and everything that follows, block by block, happens to the few class tokens alone. So the tail of such a
model is run on its class tokens: each sequence of tokens is cut to these at the door of a block and filled up with
zeros behind it, and each attention gives them what they read of each other, as now, and what they read of the patches,
as recorded in the forward pass. That sum of reads is what the tail is a function of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from camhook.adapters.base import Layout
from camhook.engine.attention import Attentions, Read
from camhook.engine.hooks import hooked
from camhook.engine.points import FeaturePoint, Shape
from camhook.engine.tracing import Attention, Trace
from camhook.errors import LayoutError

__all__ = ["ClassRead", "TokenPath", "token_paths"]


@dataclass(frozen=True)
class ClassRead:
    """One attention call in which class tokens read patches.

    Attributes
    ----------
    index
        Which attention call of the forward pass it is.
    grid_size
        Grid (h, w) of the patches that are read.
    module
        The `nn.MultiheadAttention` that makes it, if one does: a mode would switch its fast path off.
    """

    index: int
    grid_size: tuple[int, int]
    module: str | None


@dataclass(frozen=True)
class TokenPath:
    """How the class tokens of a model make their way.

    Attributes
    ----------
    layout
        Layout of the sequences.
    reads
        The attention calls in which they read patches.
    lengths
        Lengths of the sequences, prefix included.
    shape
        Length and channels (L, C) of the first sequence.
    entry
        The module whose input is where they set out.
    calls
        The attention calls from there on; the modules that are done before are not run with the tail.
    cuts
        Modules that take a sequence cut to its prefix, and for each tensor they give, which of the sequences they were
        given it is as long as (None: it is no sequence). Without any, the tail is a whole forward pass.
    readers
        Those of them in which class tokens read, in order.
    """

    layout: Layout
    reads: tuple[ClassRead, ...]
    lengths: frozenset[int]
    shape: tuple[int, ...]
    entry: str
    calls: tuple[int, ...]
    cuts: Mapping[str, tuple[int | None, ...]]
    readers: tuple[str, ...] = ()

    @property
    def prefix(self) -> int:
        """How many tokens at the start of each sequence are no patches."""
        return self.layout.num_prefix_tokens

    def is_sequence(self, value: Any) -> bool:
        """Tell whether something is a tensor of prefix tokens and patches, (B, length, C)."""
        return isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] in self.lengths

    @contextmanager
    def running(
        self, module: nn.Module, rows: Sequence[Tensor], weights: Sequence[Tensor], reads: Sequence[Tensor]
    ) -> Iterator[None]:
        """Make the model run on its prefix tokens alone.

        Parameters
        ----------
        rows
            These tokens where they set out, (B, prefix, C) for each sequence.
        weights
            Their attention weights in each read, (B, heads, prefix, keys).
        reads
            What they read of the positions in each, (B, heads, prefix, d).
        """
        known = {read.index: each for read, *each in zip(self.reads, reads, weights, strict=True)}
        prefix, entered = self.prefix, False

        def substitute(read: Read) -> Tensor | None:
            if self.calls[read.index] not in known:
                return None
            positions, among = known[self.calls[read.index]]
            among = _repeated(among[..., :prefix], positions)
            values = read.values[..., :prefix, :].to(positions.dtype)
            result = among @ values + positions
            queries = prefix if read.values.shape[-2] == prefix else read.queries
            return F.pad(result, (0, 0, 0, queries - prefix)) if queries > prefix else result

        def enter(name: str) -> Callable[..., Any]:
            def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
                nonlocal entered
                first = iter(rows) if name == self.entry and not entered else None
                entered = entered or name == self.entry

                def cut(value: Any) -> Any:
                    if not self.is_sequence(value):
                        return value
                    short = value[:, :prefix] if first is None else _repeated(next(first), reads[0])
                    return short if name in self.cuts else F.pad(short, (0, 0, 0, value.shape[1] - prefix))

                lengths.append([leaf.shape[1] for leaf in tree_leaves((args, kwargs)) if self.is_sequence(leaf)])
                return tree_map(cut, (args, kwargs))

            return before

        def leave(name: str) -> Callable[..., Any]:
            def after(_: nn.Module, args: Any, output: Any) -> Any:
                cut, each = lengths.pop(), iter(self.cuts[name])

                def fill(value: Any) -> Any:
                    if not isinstance(value, Tensor) or (sequence := next(each)) is None:
                        return value
                    if value.shape[1] != prefix:
                        raise RuntimeError("a sequence that was cut has grown again")
                    length = cut[sequence]  # of one token a view will do: nothing looks at what is behind it
                    return value.expand(-1, length, -1) if prefix == 1 else F.pad(value, (0, 0, 0, length - prefix))

                return tree_map(fill, output) if cut else None

            return after

        lengths: list[list[int]] = []
        hooks: list[tuple[str, str, Callable[..., Any]]] = []
        hooks += [(name, "input", enter(name)) for name in dict.fromkeys((self.entry, *self.cuts))]
        hooks += [(name, "output", leave(name)) for name in self.cuts]
        with hooked(module, hooks), _Fitting(), Attentions(substitute):
            yield


class _Fitting(TorchFunctionMode):
    """Cuts what is as long as a whole sequence (rotary embeddings, position biases) to the prefix that it meets.

    Prefix tokens come first, so the first rows are theirs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if name in ("mul", "add", "sub", "where", "addcmul") and all(isinstance(a, Tensor) for a in args[:2]):
            first, second = args[:2]
            try:
                torch.broadcast_shapes(first.shape, second.shape)
            except RuntimeError:
                args = (_cut_to(first, second), _cut_to(second, first), *args[2:])
        return func(*args, **(kwargs or {}))


def _cut_to(value: Tensor, other: Tensor) -> Tensor:
    for d in range(1, min(value.ndim, other.ndim) + 1):
        if 1 != value.shape[-d] > other.shape[-d] != 1:
            value = value.narrow(-d, 0, other.shape[-d])
    return value


def _repeated(value: Tensor, like: Tensor) -> Tensor:
    count, batch = like.shape[0], value.shape[0]  # len() would fix a traced batch size
    return value if batch == count else value.repeat_interleave(count // batch, 0)


def token_paths(
    found: Trace,
    layout: Layout,
    input_size: tuple[int, int],
    within: Sequence[str] = ("",),
    *,
    patches_go_on: bool = False,
) -> Iterator[TokenPath]:
    """Yield what may be the path of class tokens in a traced model, cheapest first: cut at the outermost modules.

    Class tokens read patches where there are as many keys as they and the patches of some grid are together; only calls
    made within the modules named count. Where `patches_go_on`, something else reads them after the last attention.
    """
    prefix = layout.num_prefix_tokens

    def counts(call: Attention) -> bool:
        return any(f"{name}.".startswith(f"{outer}." if outer else "") for name, _ in call.modules for outer in within)

    def grid(length: int) -> tuple[int, int] | None:
        try:
            size = layout.grid_size((1, length, 1), input_size)
        except LayoutError:
            return None
        return None if size == (1, 1) else size

    reads, doors = [], []
    lengths: set[int] = set()
    for call in found.attentions:
        keys = call.values[-2]
        if (
            not counts(call)
            or keys <= prefix
            or (size := grid(keys)) is None
            or not (call.queries == prefix or grid(call.queries))
        ):
            continue
        reads.append(ClassRead(call.index, size, call.modules[-1][0] if call.is_module else None))
        fitting = {name: [s[1] for s in shapes if s[1] > prefix and grid(s[1])] for name, shapes in call.modules}
        lengths.update(*fitting.values())
        doors.append([name for name, found_lengths in fitting.items() if name and found_lengths])
    if not reads or not all(doors):
        return
    ways = [[door[min(depth, len(door) - 1)] for door in doors] for depth in range(max(map(len, doors)))]
    given = {name: shapes for call in found.attentions for name, shapes in call.modules}
    entry = doors[0][0]
    shape = next(shape[1:] for shape in given[entry] if shape[1] in lengths)
    done = found.done_before([FeaturePoint(entry, "input")])
    calls = tuple(c.index for c in found.attentions if not any(name in done for name, _ in c.modules))
    whole = TokenPath(layout, tuple(reads), frozenset(lengths), shape, entry, calls, {})
    for way in ways:
        cuts = {}
        for name in way:
            longs = [shape[1] for shape in given[name] if shape[1] in lengths]
            gave = [leaf.size for leaf in tree_leaves(found.outputs[name]) if isinstance(leaf, Shape)]
            cuts[name] = tuple(longs.index(s[1]) if len(s) == 3 and s[1] in longs else None for s in gave)
        if not patches_go_on:
            cuts |= dict.fromkeys(_between(found, way, lengths, {*done, entry}), (0,))
        yield replace(whole, cuts=cuts, readers=tuple(dict.fromkeys(way)))
    yield whole


def _between(found: Trace, way: Sequence[str], lengths: Collection[int], done: Collection[str]) -> Iterator[str]:
    """Yield the modules beside those of a way that make of one sequence another, such as a last norm."""
    for event in found.events:
        name, shape = event.point.module, tuple(event.tensor.shape)
        is_sequence = event.point.side == "input" and len(shape) == 3 and shape[1] in lengths
        beside = not any(f"{a}.".startswith(f"{b}.") for each in way for a, b in ((name, each), (each, name)))
        early = any(f"{name}.".startswith(f"{each}.") for each in done)
        if name and is_sequence and beside and not early and found.outputs[name] == Shape(shape, event.tensor.dtype):
            yield name

"""Search for the path of class tokens in a traced model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from camhook.adapters.base import Layout
from camhook.engine.class_tokens import ClassTokenCall, TokenPath
from camhook.engine.points import FeaturePoint, Shape
from camhook.engine.token_capture import TokenCapture
from camhook.engine.tracing import Trace, TracedAttention
from camhook.errors import LayoutError

__all__ = ["meta_capture", "token_paths"]


def token_paths(
    trace: Trace,
    layout: Layout,
    input_size: tuple[int, int],
    within: Sequence[str] = ("",),
    *,
    patches_go_on: bool = False,
) -> Iterator[TokenPath]:
    """Yield candidates for the path of class tokens, cheapest first: truncated at the outermost modules.

    Class tokens read patches where there are as many keys as they and the patches of some grid are together; only calls
    made within the modules named by `within` count. With `patches_go_on`, the last patches are read otherwise too.
    """
    prefix = layout.num_prefix_tokens

    def counts(call: TracedAttention) -> bool:
        return any(f"{name}.".startswith(f"{outer}." if outer else "") for name, _ in call.modules for outer in within)

    def grid(length: int) -> tuple[int, int] | None:
        try:
            size = layout.grid_size((1, length, 1), input_size)
        except LayoutError:
            return None
        return None if size == (1, 1) else size

    calls, candidates = [], []
    lengths: set[int] = set()
    for call in trace.attentions:
        keys = call.values[-2]
        if (
            not counts(call)
            or keys <= prefix
            or (size := grid(keys)) is None
            or not (call.queries == prefix or grid(call.queries))
        ):
            continue
        calls.append(ClassTokenCall(call.index, size, call.modules[-1][0] if call.is_module else None))
        fitting = {name: [s[1] for s in shapes if s[1] > prefix and grid(s[1])] for name, shapes in call.modules}
        lengths.update(*fitting.values())
        candidates.append([name for name, found in fitting.items() if name and found])
    if not calls or not all(candidates):
        return
    depth = max(map(len, candidates))
    levels = [[names[min(level, len(names) - 1)] for names in candidates] for level in range(depth)]
    given = {name: shapes for call in trace.attentions for name, shapes in call.modules}
    entry = candidates[0][0]
    done = trace.done_before([FeaturePoint(entry, "input")])
    whole = TokenPath(
        layout=layout,
        calls=tuple(calls),
        lengths=frozenset(lengths),
        shape=next(shape[1:] for shape in given[entry] if shape[1] in lengths),
        entry=entry,
        tail_calls=tuple(c.index for c in trace.attentions if not any(name in done for name, _ in c.modules)),
        truncated={},
    )
    for level in levels:
        truncated = {}
        for name in level:
            sequences = [shape[1] for shape in given[name] if shape[1] in lengths]
            returned = [leaf.size for leaf in tree_leaves(trace.outputs[name]) if isinstance(leaf, Shape)]
            truncated[name] = tuple(
                sequences.index(s[1]) if len(s) == 3 and s[1] in sequences else None for s in returned
            )
        if not patches_go_on:
            truncated |= dict.fromkeys(_between(trace, level, lengths, {*done, entry}), (0,))
        yield replace(whole, truncated=truncated, readers=tuple(dict.fromkeys(level)))
    yield whole


def _between(trace: Trace, level: Sequence[str], lengths: Collection[int], done: Collection[str]) -> Iterator[str]:
    """Yield modules outside those of a level that turn one sequence into another, such as a last norm."""
    for event in trace.events:
        name, shape = event.point.module, tuple(event.tensor.shape)
        is_sequence = event.point.side == "input" and len(shape) == 3 and shape[1] in lengths
        outside = not any(f"{a}.".startswith(f"{b}.") for each in level for a, b in ((name, each), (each, name)))
        early = any(f"{name}.".startswith(f"{each}.") for each in done)
        if name and is_sequence and outside and not early and trace.outputs[name] == Shape(shape, event.tensor.dtype):
            yield name


def meta_capture(trace: Trace, path: TokenPath) -> tuple[TokenCapture, list[Tensor]]:
    """Return what a forward pass would capture, and what the class tokens would read, as meta tensors."""
    captured = TokenCapture(path)
    calls = {call.index: call for call in trace.attentions}
    shapes = dict(calls[path.calls[0].index].modules)[path.entry]

    def shape(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float64, device="meta")

    captured.prefix = [shape(b, path.num_prefix_tokens, c) for b, length, c in shapes if length in path.lengths]
    values = [calls[call.index].values for call in path.calls]
    captured.weights = [shape(*v[:-2], path.num_prefix_tokens, v[-2]) for v in values]
    return captured, [shape(*v[:-2], path.num_prefix_tokens, v[-1]) for v in values]

"""Capture of class tokens in one forward pass: the prefix tokens at the start of their path, and what they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from camhook.decompose.tail_inputs import AttentionInput
from camhook.engine.attention import AttentionCall, AttentionCalls
from camhook.engine.class_tokens import TokenPath
from camhook.engine.hooks import hooked
from camhook.errors import HookError

__all__ = ["TokenCapture", "capture_tokens"]


class TokenCapture:
    """What one forward pass showed of a path of class tokens.

    Attributes
    ----------
    prefix : list of Tensor
        The prefix tokens (B, P, C) at the start of the path, for each sequence.
    weights, values : list of Tensor
        For each call, the prefix tokens' attention weights (B, heads, P, keys) and the values (B, heads, keys, d).
    """

    def __init__(self, path: TokenPath) -> None:
        self._path = path
        self.prefix: list[Tensor] = []
        self.weights: list[Tensor] = [torch.empty(0)] * len(path.calls)
        self.values: list[Tensor] = [torch.empty(0)] * len(path.calls)
        self._numbers = {call.index: i for i, call in enumerate(path.calls)}
        self._module_calls: list[tuple[int, Any]] = []

    @torch.no_grad()
    def keep(self, call: AttentionCall) -> None:
        """Keep an attention call's weights and values, if it is on the path."""
        if (i := self._numbers.get(call.index)) is not None:
            with torch.autocast(call.values.device.type, enabled=False):
                self.weights[i] = call.weights(self._path.num_prefix_tokens).detach()
                self.values[i] = call.values.detach().clone()  # a copy, for it is a view of something far larger

    def keep_module_call(self, i: int, args: Any, kwargs: Any) -> None:
        """Keep the arguments of an `nn.MultiheadAttention`."""
        self._module_calls.append((i, tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (args, kwargs))))

    def complete(self, module: nn.Module) -> None:
        """Run the attention modules that were called, on the prefix tokens only, to read off weights and values.

        Raises
        ------
        HookError
            If the forward pass did not take the expected path.
        """
        path, modules = self._path, dict(module.named_modules()) if self._module_calls else {}
        for i, (args, kwargs) in self._module_calls:
            name, index = path.calls[i].module, path.calls[i].index
            assert name is not None
            query, *rest = args
            with torch.no_grad(), AttentionCalls(lambda call, index=index: self.keep(replace(call, index=index))):  # type: ignore[misc]
                modules[name](query[:, : path.num_prefix_tokens], *rest, **kwargs)
        self.prefix, self.weights, self.values = (
            [each.clone() if each.is_inference() else each for each in kept]  # the pass may have run in inference mode
            for kept in (self.prefix, self.weights, self.values)
        )
        if not self.prefix or not all(weights.ndim > 1 for weights in self.weights):
            raise HookError(
                f"The forward pass did not take the path of the class tokens, from the input of {path.entry} through "
                f"{len(path.calls)} attention calls. Was the model changed, compiled or scripted after wrapping? "
                "Wrap it again."
            )

    def inputs(self) -> list[AttentionInput]:
        """Return what the prefix tokens read of the positions in each call."""
        count = self._path.num_prefix_tokens
        return [
            AttentionInput(_widened(weights[..., count:]), _widened(values[..., count:, :]), call.grid_size)
            for call, weights, values in zip(self._path.calls, self.weights, self.values, strict=True)
        ]

    def pooling_weights(self, grid_size: tuple[int, int]) -> Tensor:
        """Return the class token's last attention on a grid, the mean over heads, (B, N); it adds up to 1."""
        last = max(i for i, call in enumerate(self._path.calls) if call.grid_size == grid_size)
        weights = _widened(self.weights[last])[..., 0, self._path.num_prefix_tokens :].mean(1)
        return weights / weights.sum(1, keepdim=True)


@contextmanager
def capture_tokens(model: nn.Module, path: TokenPath) -> Iterator[TokenCapture]:
    """Capture what class tokens read while the model runs in the block; the pass is not changed."""
    captured = TokenCapture(path)

    def start_path(_: nn.Module, args: Any, kwargs: Any) -> None:
        sequences = [leaf for leaf in tree_leaves((args, kwargs)) if path.is_sequence(leaf)]
        captured.prefix = [leaf[:, : path.num_prefix_tokens].detach().clone() for leaf in sequences]

    hooks: list[tuple[str, str, Callable[..., Any]]] = [(path.entry, "input", start_path)]
    for i, call in enumerate(path.calls):
        if call.module is not None:

            def keep(_: nn.Module, args: Any, kwargs: Any, i: int = i) -> None:
                captured.keep_module_call(i, args, kwargs)

            hooks.append((call.module, "input", keep))
    watching = ExitStack()  # an attention mode, while the model itself runs: others may run in the block

    def start(*_: Any) -> None:
        watching.enter_context(AttentionCalls(captured.keep))

    def stop(*_: Any) -> None:
        watching.close()

    if any(call.module is None for call in path.calls):
        hooks = [("", "input", start), *hooks, ("", "output", stop)]
    with watching, hooked(model, hooks):
        yield captured


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

"""The tail of a model, from its feature points to the logits, as a function of what was captured there.

A tail is run in the torch-function modes below, the first entered being closest to torch; a call passes through them
from the last to the first:

1. `LinearTail`'s mode (decompose): baselines, frozen statistics, secants;
2. `RandomParameters` (while wrapping, on a meta copy) or `MetaUntilFeatures` (in calls): what is real, what a shape;
3. `PrefixOnly` (class tokens): position biases and rotary embeddings cut to the prefix tokens;
4. `AttentionCalls` (class tokens): recorded attention in the place of the model's own.

Which tensors depend on the features, each keeps in a `Dependents`, or with their baselines in the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from camhook.decompose.arguments import Dependents, mapped, tensors_of
from camhook.decompose.linear_tail import Run
from camhook.engine.class_tokens import TokenPath
from camhook.engine.hooks import replacing
from camhook.engine.points import FeaturePoint, Shape
from camhook.engine.token_capture import TokenCapture
from camhook.errors import HookError

__all__ = ["Output", "Tail"]

Output = Callable[[Any], Tensor]
"""Picks the logits (B, K) out of what a model returns."""


class Tail:
    """The tail of a model, or of its meta copy, from some feature points on.

    Parameters
    ----------
    module
        A copy of the model; the tensors at the points are replaced in mid-forward.
    entry
        ``"forward_head"``: the method that takes the features; else ``"forward"``.
    points
        Where features enter.
    tokens
        The path of class tokens, if the tail follows one: it then reads their attention first, and the prefix tokens of
        the features come from the path.
    skipped_modules
        Modules that are finished before any of these is reached: they are not run, and return empty tensors of the
        shapes that they returned in the forward pass.
    output
        Picks the logits.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        entry: str,
        points: Sequence[FeaturePoint],
        tokens: TokenPath | None,
        skipped_modules: Sequence[str],
        output: Output,
    ) -> None:
        self._module: Any = module
        parameter = next(module.parameters(), None)
        self._has_values = parameter is None or not parameter.is_meta
        self._entry, self._points, self._tokens, self._output = entry, list(points), tokens, output
        self._skipped_modules = list(skipped_modules)

    def run_on(
        self, inputs: Tensor, shapes: Mapping[str, Any] | None = None, captured: TokenCapture | None = None
    ) -> Run:
        """Return the tail for a batch of inputs, as a function of attention reads and features.

        Inputs on the meta device give a tail that runs on shapes up to the points, with `shapes` for what the skipped
        modules returned; real ones, a second forward pass.
        """
        if self._entry == "forward_head":
            return lambda *given: self._output(self._module.forward_head(*given))

        def run(*given: Tensor) -> Tensor:
            count = len(self._tokens.calls) if self._tokens else 0
            prefix = captured.prefix if captured else []
            with ExitStack() as stack:
                if inputs.is_meta and self._has_values:
                    mode = MetaUntilFeatures([*given, *prefix], zeros=self._tokens is not None)
                    stack.enter_context(mode)
                if self._tokens is not None and captured is not None:
                    path = self._tokens.run_prefix_only(self._module, prefix, captured.weights, given[:count])
                    stack.enter_context(path)
                for point, tensor in zip(self._points, given[count:], strict=True):
                    stack.enter_context(replacing(self._module, point, self._replacement(tensor)))
                if inputs.is_meta:
                    stack.enter_context(self._skipping(inputs, shapes or {}))
                return self._output(self._module(inputs))

        return run

    @contextmanager
    def _skipping(self, inputs: Tensor, shapes: Mapping[str, Any]) -> Iterator[None]:
        """Have the skipped modules return empty tensors, made of the inputs, of the given shapes."""

        def empty(leaf: Any) -> Any:
            return inputs.new_empty(leaf.size, dtype=leaf.dtype) if isinstance(leaf, Shape) else leaf

        def skip(returned: Any) -> Callable[..., Any]:
            return lambda *args, **kwargs: tree_map(empty, returned)

        modules = {name: self._module.get_submodule(name) for name in self._skipped_modules if name in shapes}
        for name, module in modules.items():
            module.forward = skip(shapes[name])
        try:
            yield
        finally:
            for module in modules.values():
                del module.forward

    def _replacement(self, tensor: Tensor) -> Callable[[Tensor], Tensor]:
        if self._tokens is None:
            return lambda _: tensor
        count = self._tokens.num_prefix_tokens
        return lambda whole: torch.cat((whole[:, :count], tensor[:, count:]), 1)


class MetaUntilFeatures(TorchFunctionMode):
    """Mode that runs a model on shapes until the features enter; a meta tensor that meets them later is an error.

    With `zeros`, it becomes zeros then: on the path of class tokens all that is known of patches has been captured.
    """

    def __init__(self, features: Sequence[Tensor], *, zeros: bool) -> None:
        super().__init__()
        self._of_features = Dependents(features)
        self._zeros = zeros

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        feature = self._of_features.among(tensors)
        for tensor in tensors:
            if tensor.is_meta:
                if feature is None and func in (Tensor.cpu, Tensor.cuda):  # a shape stays one
                    return args[0]
                args, kwargs = self._resolved(func, tensors, feature, args, kwargs)
                break
        result = func(*args, **kwargs)
        return result if feature is None else self._of_features.add(result)

    def _resolved(self, func: Any, tensors: Sequence[Tensor], feature: Tensor | None, args: Any, kwargs: Any) -> Any:
        """Return the arguments of a call that takes a meta tensor: all of them as shapes, or all of them real."""
        if feature is None:
            return mapped(_device_to_meta if func is Tensor.to else _to_meta, args, kwargs)
        if not self._zeros and any(t.is_meta and t.numel() for t in tensors):
            raise HookError(
                f"{getattr(func, '__name__', func)} takes in a tensor that bypasses the features at which the map is "
                "read (a skip connection). Was the model changed after wrapping? Wrap it again."
            )
        device = feature.device
        return mapped(lambda value: _to_zeros(value, device), args, kwargs)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _device_to_meta(value: Any) -> Any:
    """Replace the device that a tensor is to be moved to: a shape stays one."""
    names_device = isinstance(value, torch.device | str | int) and not isinstance(value, bool)
    return torch.device("meta") if names_device else value


def _to_zeros(value: Any, device: torch.device) -> Any:
    is_shape = isinstance(value, Tensor) and value.is_meta
    return torch.zeros(value.shape, dtype=value.dtype, device=device) if is_shape else value

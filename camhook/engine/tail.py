"""A model's tail as a function of what was captured: whatever comes before is run on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from camhook.decompose.torch_functions import mapped, tensors_of
from camhook.engine.class_tokens import TokenPath
from camhook.engine.hooks import replacing
from camhook.engine.points import FeaturePoint, Shape
from camhook.engine.token_capture import Recording
from camhook.errors import HookError

__all__ = ["Output", "Tail"]

Output = Callable[[Any], Tensor]
"""Picks the logits (B, K) out of what a model returns."""


class Tail:
    """The tail of a model, or of its skeleton, from some points on.

    Parameters
    ----------
    module
        A twin, on which the points' tensors are replaced in mid-forward; or a skeleton.
    entry
        ``"forward_head"``: the method that takes the features; else ``"forward"``.
    points
        Where tensors enter, and how many tokens at the start of each come from the token path and are left as they are.
    tokens
        The path of class tokens, whose reads come first among what the tail is a function of.
    stubs
        Modules that are done when the first of these is reached: they are not run, but give what they gave, as shapes.
    """

    def __init__(
        self,
        module: nn.Module,
        entry: str,
        points: Sequence[FeaturePoint],
        tokens: TokenPath | None,
        stubs: Sequence[str],
        output: Output,
    ) -> None:
        self._module: Any = module
        self._is_live = not next((p.is_meta for p in module.parameters()), False)
        self._entry, self._points, self._tokens, self._output = entry, list(points), tokens, output
        self._stubs = list(stubs)

    def of(
        self, inputs: Tensor, shapes: Mapping[str, Any] | None = None, recorded: Recording | None = None
    ) -> Callable[..., Tensor]:
        """Return the tail for a batch of inputs as a function of reads and features, batched along the first axis.

        Inputs on the meta device give a tail that runs on shapes up to the points, with `shapes` for what the stubs
        gave; real ones, a second forward pass.
        """

        def run(*given: Tensor) -> Tensor:
            if self._entry == "forward_head":
                return self._output(self._module.forward_head(*given))
            count = len(self._tokens.reads) if self._tokens else 0
            rows = recorded.rows if recorded else []
            with ExitStack() as stack:
                if inputs.is_meta and self._is_live:
                    stack.enter_context(_Shapes([*given, *rows], fills=self._tokens is not None))
                if self._tokens is not None:
                    assert recorded is not None
                    stack.enter_context(
                        self._tokens.running(self._module, recorded.rows, recorded.weights, given[:count])
                    )
                for point, tensor in zip(self._points, given[count:], strict=True):
                    stack.enter_context(replacing(self._module, point, self._put(tensor)))
                if not inputs.is_meta:
                    return self._output(self._module(inputs))
                stack.enter_context(self._stubbed(inputs, shapes or {}, given[0].shape[0] // inputs.shape[0]))
                return self._output(self._module(inputs.new_empty((given[0].shape[0], *inputs.shape[1:]))))

        return run

    @contextmanager
    def _stubbed(self, inputs: Tensor, shapes: Mapping[str, Any], repeats: int) -> Iterator[None]:
        """Have the stubs do nothing but give tensors, made of the inputs, of the shapes that they gave."""

        def stub(given: Any) -> Callable[..., Any]:
            def blank(leaf: Any) -> Any:
                if not isinstance(leaf, Shape):
                    return leaf
                return inputs.new_empty((leaf.size[0] * repeats, *leaf.size[1:]), dtype=leaf.dtype)

            return lambda *args, **kwargs: tree_map(blank, given)

        modules = [self._module.get_submodule(name) for name in self._stubs if name in shapes]
        for name, module in zip((name for name in self._stubs if name in shapes), modules, strict=True):
            module.forward = stub(shapes[name])
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _put(self, tensor: Tensor) -> Callable[[Tensor], Tensor]:
        if self._tokens is None:
            return lambda _: tensor
        prefix = self._tokens.prefix
        return lambda whole: torch.cat((whole[:, :prefix], tensor[:, prefix:]), 1)


class _Shapes(TorchFunctionMode):
    """Where a meta tensor meets a model's own, takes that as a shape too; where it meets what was captured, objects.

    With `fills`, it is zeros there: on the path of class tokens all that is known of patches has been recorded.
    """

    def __init__(self, given: Sequence[Tensor], *, fills: bool) -> None:
        super().__init__()
        self._live = WeakIdKeyDictionary()
        self._fills = fills
        self._mark(given)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        alive = next((t for t in tensors if t in self._live), None)
        if any(t.is_meta for t in tensors):
            if alive is None and func in _MOVES:  # x.to(self.device): a shape stays one
                if func is not Tensor.to:
                    return args[0]
                args, kwargs = mapped(_nowhere, args, kwargs)
            elif alive is None:
                args, kwargs = mapped(lambda t: t.to("meta") if isinstance(t, Tensor) else t, args, kwargs)
            elif not self._fills and any(t.is_meta and t.numel() for t in tensors):
                raise HookError(
                    f"{getattr(func, '__name__', func)} takes in something that came round the place where the map is "
                    "read. Was the model changed after wrapping? Wrap it again."
                )
            else:
                device = alive.device
                args, kwargs = mapped(lambda t: _zeros(t, device) if _is_meta(t) else t, args, kwargs)
        result = func(*args, **kwargs)
        return result if alive is None else self._mark(result)

    def _mark(self, result: Any) -> Any:
        for leaf in tensors_of((result,)):
            self._live[leaf] = None
        return result


_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}


def _nowhere(value: Any) -> Any:
    return (
        torch.device("meta") if isinstance(value, torch.device | str | int) and not isinstance(value, bool) else value
    )


def _zeros(meta: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(meta.shape, dtype=meta.dtype, device=device)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta

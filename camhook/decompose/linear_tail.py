"""Linearised tail: norm scales, attention weights and argmax indices frozen, activations replaced by secants.

Inside a tail, some functions keep a score from being a sum over positions. Four kinds are frozen at their values for
the current images: the scale of a normalisation, the weights of an attention, the argmax of a maximum, a denominator
that depends on the features. The other two are replaced by what is affine and agrees with them at baseline and
value: an activation by its secant, a product of two inputs by its two halves. So whatever the depth of the tail, its
change from the baseline to the value is the sum, without remainder, of the change of its inputs times one multiplier
each (Shrikumar et al. 2017, arXiv 1704.02685; with one activation it is the path integral of Sundararajan et al. 2017
in closed form).

The tail is run once, at the value. Beside each tensor that depends on the features, its baseline is computed by the
same calls. So nothing has to be known of which axis holds the batch, and windows or heads may be folded into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from camhook.decompose.arguments import mapped, tensors_of
from camhook.decompose.secants import Operand, elementwise, linearised_activation, linearised_product
from camhook.decompose.torch_functions import (
    ACTIVATIONS,
    DIVISIONS,
    FROZEN,
    PRODUCTS,
    STATISTICS,
    attention_weights,
    conv_as_linear,
    is_in_place,
    mha_parts,
    take_input,
)

__all__ = ["LinearTail", "Run"]

Run = Callable[..., Tensor]
"""A tail: from feature tensors to logits (B, K)."""

_HALF = (torch.float16, torch.bfloat16)


class LinearTail:
    """A tail linearised between a baseline and the current value of its inputs.

    Parameters
    ----------
    tail
        Function from its inputs to logits (B, K).
    values, baselines
        The inputs as they are, and the same without the contribution of any position.
    secant_dtype
        Precision in which secants are computed; default float64 where the device has it.

    Attributes
    ----------
    logits, offset : Tensor
        (B, K): the tail at the value and, with everything frozen at the value, at the baseline.
    kinds : set of str
        What was met: ``"norm"``, ``"attention"``, ``"max"`` (frozen), ``"secant"``, ``"conv"``.
    degree : int
        How many secants lie on the longest way from an input to the logits; 0 for a tail that is affine once frozen.
    """

    def __init__(
        self,
        tail: Run,
        values: Sequence[Tensor],
        baselines: Sequence[Tensor],
        *,
        secant_dtype: torch.dtype | None = None,
    ) -> None:
        self._inputs = [each.detach().requires_grad_() for each in values]
        self._baselines = list(baselines)
        device = values[0].device.type
        secant_dtype = secant_dtype or (torch.float32 if device == "mps" else torch.float64)
        mode = _Linearisation(values[0].dtype, secant_dtype)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            with torch.enable_grad():  # the tail may begin in place: it must not meet a leaf, or the captured tensor
                copies = [each * 1 for each in self._inputs]
            for copy, baseline in zip(copies, baselines, strict=True):
                mode.carry(copy, baseline.clone(), 0)
            with mode:
                self._logits = tail(*copies)
        self.kinds = mode.kinds
        self.offset, self.degree = mode.baseline_of(self._logits)
        self.logits = self._logits.detach()

    @property
    def changes(self) -> list[Tensor]:
        """Value minus baseline of each input."""
        return [each.detach() - baseline for each, baseline in zip(self._inputs, self._baselines, strict=True)]

    def multipliers(self, targets: Tensor) -> list[Tensor]:
        """Return the multipliers of the classes ``targets`` (B, T) for each input, (B, T, ...)."""
        one_hot = torch.zeros_like(self.logits)[None].expand(targets.shape[1], -1, -1)
        one_hot = one_hot.scatter(2, targets.T[..., None], 1)
        if len(one_hot) == 1 or isinstance(one_hot, FakeTensor):  # batched, some operations fix a symbolic batch size
            per_class = [self._gradients(self._logits, row) for row in one_hot.unbind()]
            return [torch.stack(of_input, 1) for of_input in zip(*per_class, strict=True)]
        return [each.transpose(0, 1) for each in torch.vmap(lambda row: self._gradients(self._logits, row))(one_hot)]

    def responses(self, changes: Mapping[int, Tensor]) -> Tensor:
        """Return the change (R, B, K) of all logits for R changes (R, B, ...) of some inputs, given by their number.

        A Jacobian-vector product, as the derivative of the vector-Jacobian product with respect to its vector.
        """
        cotangent = torch.zeros_like(self.logits).requires_grad_()
        pulled = self._gradients(self._logits, cotangent, create_graph=True)
        numbers = [number for number in changes if pulled[number].requires_grad]

        def response(*change: Tensor) -> Tensor:
            read = [pulled[number] for number in numbers]
            (pushed,) = torch.autograd.grad(read, cotangent, grad_outputs=change, retain_graph=True)
            return pushed

        if not numbers:  # all that depends on the inputs is frozen
            return cotangent.new_zeros((len(next(iter(changes.values()))), *cotangent.shape))
        return torch.vmap(response)(*[changes[number] for number in numbers])

    def _gradients(self, outputs: Tensor, weights: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs,
            self._inputs,
            grad_outputs=weights,
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )


class _Linearisation(TorchFunctionMode):
    """Mode that computes, for each tensor that depends on the features, its baseline too, and linearises each call."""

    def __init__(self, dtype: torch.dtype, secant_dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype, self._secant_dtype = dtype, secant_dtype
        self._carried = WeakIdKeyDictionary()  # tensor -> its baseline, its degree
        self.kinds: set[str] = set()

    def carry(self, value: Tensor, baseline: Tensor, degree: int) -> Tensor:
        """Note the baseline and degree of a tensor."""
        self._carried[value] = baseline, degree
        return value

    def baseline_of(self, value: Tensor) -> tuple[Tensor, int]:
        """Return the baseline and degree of a tensor; of one that does not depend on the features, itself."""
        found: tuple[Tensor, int] = self._carried.get(value, (value, 0))
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        depends, convert = False, False
        for tensor in tensors:
            depends = depends or tensor in self._carried
            convert = convert or tensor.dtype in _HALF or tensor.is_inference()
        if convert:
            args, kwargs = mapped(self._usable, args, kwargs)
        if not depends or (func in (Tensor.to, Tensor.type_as) and args[0] not in self._carried):
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__" and not isinstance(result := func(*args), Tensor):
            return result  # .shape and the like
        with torch.enable_grad():
            return self._linearised(func, tuple(args), dict(kwargs))

    def _linearised(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in ACTIVATIONS:
            x, args, kwargs = take_input(args, kwargs)
            return self._activation(elementwise(func, args, kwargs), x)
        if func in FROZEN:
            self.kinds.add("attention" if "softmax" in func.__name__ else "norm")
            with torch.no_grad():
                return func(*args, **kwargs)
        if func in STATISTICS:
            return self._with_statistics(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            return self._attention(args, kwargs)
        depend = [isinstance(each, Tensor) and each in self._carried for each in args]
        if func in PRODUCTS and all(depend[:2]):
            return self._product(PRODUCTS[func], *args[:2])
        if func is torch.einsum and sum(depend) == 2:
            return self._product(lambda a, b: torch.einsum(args[0], a, b), *args[1:3])
        if func is F.glu:
            x, args, kwargs = take_input(args, kwargs)
            values, gates = self._affine(Tensor.chunk, (x, 2, kwargs.get("dim", *args or (-1,))), {})
            return self._product(torch.mul, values, self._activation(torch.sigmoid, gates))
        if func in (torch.max, Tensor.max, torch.maximum):  # of two tensors
            excess = self._activation(torch.relu, self._affine(torch.sub, args[:2], {}))
            return self._affine(torch.add, (excess, args[1]), {})
        if func in DIVISIONS and len(args) > 1 and depend[1]:
            args = args[0], args[1].detach()
        if func is F.conv2d:
            func, args, kwargs = conv_as_linear(*args, **kwargs)
        result = self._affine(func, args, kwargs)
        if "conv" in getattr(func, "__name__", "") and max(args[1].shape[2:]) > 1 and result[0, 0].numel() > 1:
            self.kinds.add("conv")  # positions are mixed on the way
        return result

    def _affine(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function that is affine in what depends on the features, at the value and at the baseline."""
        in_place = isinstance(args[0], Tensor) and is_in_place(func)
        if in_place and args[0] not in self._carried:
            self._carried[args[0]] = args[0].detach().clone(), 0
        (at_baseline, degree), keywords = self._at_baseline(args), kwargs
        if kwargs:
            values, of_kwargs = self._at_baseline(kwargs.values())
            keywords, degree = dict(zip(kwargs, values, strict=True)), max(degree, of_kwargs)
        result = func(*args, **kwargs)
        with torch.no_grad():
            baseline = func(*at_baseline, **keywords)
        if in_place:
            self._carried[args[0]] = at_baseline[0], degree
        elif isinstance(result, Tensor):
            self._note(result, baseline, degree)
        elif isinstance(result, list | tuple):
            for value, at in zip(tensors_of(result), tensors_of(baseline), strict=True):
                self._note(value, at, degree)
        return result

    def _note(self, value: Tensor, baseline: Tensor, degree: int) -> None:
        if value.is_floating_point():  # indices and masks are frozen
            self._carried[value] = baseline, degree

    def _at_baseline(self, args: Any) -> tuple[list[Any], int]:
        """Return arguments with the baseline of each tensor that depends on the features, and the highest degree."""
        found, highest = [], 0
        for each in args:
            if isinstance(each, Tensor) and (known := self._carried.get(each)) is not None:
                found.append(known[0])
                highest = max(highest, known[1])
            elif isinstance(each, list | tuple) and tensors_of(each):
                inner, degree = self._at_baseline(each)
                found.append(type(each)(inner))
                highest = max(highest, degree)
            else:
                found.append(each)
        return found, highest

    def _activation(self, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.kinds.add("secant")
        baseline, degree = self.baseline_of(x)
        return self.carry(*linearised_activation(act, Operand(x, baseline), self._secant_dtype), degree + 1)

    def _product(self, product: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
        self.kinds.add("secant")
        (a, degree_a), (b, degree_b) = self.baseline_of(first), self.baseline_of(second)
        linearised = linearised_product(product, Operand(first, a), Operand(second, b))
        return self.carry(*linearised, max(degree_a, degree_b) + 1)

    def _with_statistics(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply a normalisation, attention or maximum with its statistics frozen at the value."""
        read, apply = STATISTICS[func]
        x, others, kwargs = take_input(args, kwargs)
        if func in (torch.max, Tensor.max) and others and isinstance(others[0], Tensor):
            return self._linearised(torch.maximum, (x, *others), kwargs)
        name = func.__name__
        self.kinds.add("attention" if "attention" in name else "norm" if "norm" in name else "max")
        with torch.no_grad():
            statistics = read(x, *others, **kwargs)
        return self._affine(lambda x, *others, **kwargs: apply(x, statistics, *others, **kwargs), (x, *others), kwargs)

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.kinds.add("attention")
        with torch.no_grad():
            (query, key, _, mask), _ = mha_parts(*args, **kwargs)
            weights = attention_weights(query, key, None, mask)

        def attend(*args: Any, **kwargs: Any) -> Any:
            (_, _, value, _), finish = mha_parts(*args, **kwargs)
            return finish(weights @ value)[0]

        return self._affine(attend, args, kwargs), None

    def _usable(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value in self._carried or not value.is_floating_point() or value.is_meta:
            return value
        if value.dtype in _HALF and self._dtype not in _HALF:
            return value.to(self._dtype)
        return value.clone() if value.is_inference() else value  # autograd refuses to save inference tensors

"""Linearised tail: norm scales, attention weights and argmax indices frozen, activations replaced by secants.

Four kinds of functions are frozen at their values for the current images: the scale of a normalisation, the weights of
an attention, the argmax of a maximum, a denominator that depends on the features. Activations are replaced by their
secants between baseline and value, products of two inputs by their two halves. The tail is then affine, and its change
from the baseline to the value is the sum, without remainder, of the change of its inputs times one multiplier each
(Shrikumar et al. 2017, arXiv 1704.02685; with one activation, the path integral of Sundararajan et al. 2017).

The tail is run once, at the value; beside each tensor that depends on the features, its baseline is computed by the
same calls. So nothing has to be known of which axis holds the batch, and windows may be folded into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from camhook.decompose.linearisation import Linearisation

__all__ = ["LinearTail", "Run"]

Run = Callable[..., Tensor]
"""A tail: from feature tensors to logits (B, K)."""


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
        mode = Linearisation(values[0].dtype, secant_dtype)
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
    def is_recorded(self) -> bool:
        """Whether the tail runs on fake tensors, to be recorded as a graph."""
        return isinstance(self.logits, FakeTensor)

    @property
    def changes(self) -> list[Tensor]:
        """Value minus baseline of each input."""
        return [each.detach() - baseline for each, baseline in zip(self._inputs, self._baselines, strict=True)]

    def multipliers(self, targets: Tensor) -> list[Tensor]:
        """Return the multipliers of the classes ``targets`` (B, T) for each input, (B, T, ...)."""
        one_hot = torch.zeros_like(self.logits)[None].expand(targets.shape[1], -1, -1)
        one_hot = one_hot.scatter(2, targets.T[..., None], 1)
        if len(one_hot) == 1 or self.is_recorded:  # batched, some operations fix a symbolic batch size
            per_class = [self._gradients(self._logits, row) for row in one_hot.unbind()]
            return [torch.stack(of_input, 1) for of_input in zip(*per_class, strict=True)]
        return [each.transpose(0, 1) for each in self._gradients(self._logits, one_hot, is_grads_batched=True)]

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

    def _gradients(self, outputs: Tensor, weights: Tensor, **options: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs, self._inputs, grad_outputs=weights, retain_graph=True, materialize_grads=True, **options
        )

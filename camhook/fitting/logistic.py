"""The loss of logistic regression over blocks of rows, and its minimum by L-BFGS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from camhook.errors import CamhookError
from camhook.fitting.moments import Moments

__all__ = ["Logistic", "Mode"]

Mode = Literal["multinomial", "one-vs-rest"]


_LARGE = 1e6  # of the mean loss: torch's L-BFGS learns no curvature from steps whose gain is below an absolute 1e-10


class Logistic:
    """A head (K, C + 1), the last column its bias, on centred and perhaps scaled features.

    Parameters and errors as in `camhook.fitting.solvers.solve_logistic`. Rows of weight 0 are never looked at.

    Attributes
    ----------
    weights
        (N,) float64.
    mean, scale
        (C,): the head sees (features - mean) / scale.
    covariance
        (C, C), of what the head sees.
    """

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        num_classes: int,
        mode: Mode,
        weights: Tensor | None,
        standardize: bool,
        rows: int,
        device: torch.device | str,
    ) -> None:
        if mode not in get_args(Mode):
            raise CamhookError(f"Found mode={mode!r}, expected one of {', '.join(get_args(Mode))}.")
        shapes = [(len(features),), (len(features), num_classes)][: get_args(Mode).index(mode) + 1]
        if features.ndim != 2 or tuple(targets.shape) not in shapes:
            found = f"features {tuple(features.shape)} and targets {tuple(targets.shape)} for {mode!r}"
            raise CamhookError(f"Found {found}, expected (N, C) and labels (N,), or (N, K) for 'one-vs-rest'.")
        self.features, self.targets, self.num_classes, self.mode = features, targets, num_classes, mode
        self.rows, self.device = rows, torch.device(device)
        self.weights = (torch.ones(len(features)) if weights is None else weights.detach().cpu()).double()
        if self.weights.shape != shapes[0] or not ((self.weights >= 0) & self.weights.isfinite()).all():
            raise CamhookError(
                f"Found weights {tuple(self.weights.shape)}, expected {shapes[0]}, finite and 0 or more."
            )
        self._check_targets()
        self.mean, self.scale, self.covariance = self._standards(standardize)

    def loss(self, head: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, summed with weights (N,), and its gradient (K, C + 1); without the penalty."""
        total, gradient = head.new_zeros(()), torch.zeros_like(head)
        weight = head[:, :-1] / self.scale  # for features as they come: cheaper than to standardise every block
        bias = head[:, -1] - weight @ self.mean
        for x, y, w in self._blocks(weights):
            scores = x @ weight.T + bias
            if self.mode == "multinomial":
                logs = scores.log_softmax(1)
                total -= w @ logs.gather(1, y[:, None])[:, 0]
                slope = logs.exp().scatter_add_(1, y[:, None], -torch.ones_like(logs[:, :1]))
            else:
                y = F.one_hot(y, self.num_classes) if y.ndim == 1 else y
                losses = F.binary_cross_entropy_with_logits(scores, y.double(), reduction="none")
                total += w @ losses.sum(1)
                slope = scores.sigmoid() - y
            slope *= w[:, None]
            gradient[:, :-1].addmm_(slope.T, x)
            gradient[:, -1] += slope.sum(0)
        gradient[:, :-1] = (gradient[:, :-1] - gradient[:, -1:] * self.mean) / self.scale
        return total, gradient

    def minimize(
        self, weights: Tensor, penalty: float, tolerance: float, iterations: int, start: Tensor | None = None
    ) -> tuple[Tensor, bool]:
        """Return the head of least (loss + penalty / 2 * the squares of its weights), and whether it got there."""
        unit = _LARGE / weights.sum()
        # L-BFGS steps in V = H L of the head H, where L L^T is the curvature while all classes are as likely: as if
        # features were uncorrelated and of one spread. Without it some fits take many times the passes.
        likely = 1 / self.num_classes if self.mode == "multinomial" else 0.5
        curvature = likely * (1 - likely) * torch.block_diag(self.covariance, torch.ones(1, 1).to(self.covariance))
        curvature.diagonal()[:-1] += penalty / weights.sum().item() + 1e-10 * self.covariance.diagonal().mean()
        factor = torch.linalg.cholesky(curvature)

        def solved(rows: Tensor, *, transposed: bool) -> Tensor:
            lower = factor.T if transposed else factor
            found: Tensor = torch.linalg.solve_triangular(lower, rows, left=False, upper=transposed)
            return found.contiguous()

        def objective(steps: Tensor) -> tuple[Tensor, Tensor]:
            head = solved(steps, transposed=False)
            loss, gradient = self.loss(head, weights)
            gradient[:, :-1] += penalty * head[:, :-1]
            loss += penalty / 2 * head[:, :-1].square().sum()
            return loss * unit, solved(gradient, transposed=True) * unit

        with torch.inference_mode(False), torch.no_grad():
            head = factor.new_zeros(self.num_classes, len(factor)) if start is None else start
            steps = head @ factor
            optimizer = torch.optim.LBFGS(
                [steps],
                max_iter=iterations,
                tolerance_grad=tolerance * _LARGE,
                tolerance_change=1e-15,  # of the loss: it is flat near its minimum, where weights still move
                history_size=20,
                line_search_fn="strong_wolfe",
            )

            def closure() -> float:
                loss, steps.grad = objective(steps)
                return loss.item()

            optimizer.step(closure)
            converged = bool(objective(steps)[1].abs().max() <= tolerance * _LARGE)
            return solved(steps.detach(), transposed=False), converged

    def _blocks(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give the rows of weight above 0 in float64, with their targets and weights."""
        for start in range(0, len(weights), self.rows):
            part = slice(start, start + self.rows)
            used = weights[part] > 0
            block: tuple[Tensor, ...] = (self.features[part], self.targets[part], weights[part])
            if not used.all():
                block = tuple(value[used.to(value.device)] for value in block)
            x, y, w = (value.to(self.device) for value in block)
            if len(w):
                yield x.double(), y, w

    def _check_targets(self) -> None:
        used = self.targets[(self.weights > 0).to(self.targets.device)]
        k, single = self.num_classes, used.ndim == 1
        if not single and not ((used == 0) | (used == 1)).all():
            raise CamhookError("Found multi-label targets other than 0 and 1; pass 1 for each class in the image.")
        if single and (used.is_floating_point() or ((used < 0) | (used >= k)).any()):
            found = f"Found labels {used.dtype} from {used.min()} to {used.max()}"
            raise CamhookError(f"{found}, expected integers from 0 to {k - 1}; renumber them, or raise the classes.")
        counts = used.bincount(minlength=k) if single else (used > 0).sum(0)
        if single and int((counts > 0).sum()) < 2:
            raise CamhookError("Found images of one class only, expected two or more; add images of what it is not.")
        for rule, wrong in (("in no image", counts == 0), ("in every image", counts == len(used))):
            if wrong.any():
                listed = ", ".join(map(str, wrong.nonzero()[:10, 0].tolist()))
                raise CamhookError(
                    f"{int(wrong.sum())} classes are {rule} (first: {listed}); add images, or leave them out."
                )

    def _standards(self, standardize: bool) -> tuple[Tensor, Tensor, Tensor]:
        size = self.features.shape[1]
        moments = Moments.empty(size, 1, self.device)
        for x, _, w in self._blocks(self.weights):
            if not x.isfinite().all():
                raise CamhookError("Found features that are NaN or infinite; leave these images out (weight 0).")
            moments.add(x, torch.zeros(len(x), 1).to(x), w)
        scale = moments.deviation() if standardize else torch.ones_like(moments.feature_mean)
        return moments.feature_mean, scale, moments.gram / scale[:, None] / scale / moments.weight

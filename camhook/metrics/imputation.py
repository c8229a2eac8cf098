"""ROAD: remove and debias, with noisy linear imputation of the removed pixels (Rong et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError, DependencyError
from camhook.metrics.arguments import as_arguments, checked_batch_size, target_logits
from camhook.metrics.perturbation import ranks
from camhook.metrics.types import Classifier, Maps, Target

__all__ = ["imputed", "road"]

Order: TypeAlias = Literal["combined", "lerf", "morf"]


def road(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Classifier,
    *,
    order: Order = "combined",
    percentages: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    noise: float = 0.01,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""Compute ROAD: the target's probability after pixels are imputed, least minus most relevant first.

    .. math:: (\overline{P_\mathrm{LeRF}} - \overline{P_\mathrm{MoRF}}) / 2

    with :math:`\overline P` the mean over percentages of the target's softmax probability, the least relevant pixels
    removed first (LeRF, higher is better) or the most relevant (MoRF, lower is better), and replaced by `imputed`. Rong
    et al. 2022 take the accuracy on a data set for P; the halved difference is the usual combination.

    Parameters
    ----------
    order : "combined", "lerf" or "morf"
        ``"combined"``: -0.5 to 0.5, higher is better; the two others alone: 0 to 1.
    percentages : sequence of float
        Of the pixels, above 0 and below 100.
    noise : float
        Standard deviation of the noise added to imputed pixels, in the images' units.
    seed : int
        Seed of the noise and of the order among ties, the same for all images.
    maps, images, target, model, batch_size
        As in `deletion`.

    Returns
    -------
    Tensor
        (B,), float64.

    Raises
    ------
    CamhookError
        As in `deletion`; or the order is unknown, or a percentage out of range.
    DependencyError
        SciPy, which solves for the removed pixels, is not installed.

    Examples
    --------
    >>> images = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    >>> model = lambda x: 99 * torch.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    >>> road([[[9.0, 3.0, 2.0, 1.0]]], images, 0, model, percentages=[50])  # LeRF 1, MoRF 0
    tensor([0.5000], dtype=torch.float64)
    """
    if order not in ("combined", "lerf", "morf"):
        raise CamhookError(f"Found order={order!r}, expected 'combined', 'lerf' or 'morf'; pass one of those.")
    values, pixels, classes = as_arguments(maps, images, target)
    if not percentages or min(percentages) <= 0 or max(percentages) >= 100:
        raise CamhookError(f"Found percentages={percentages!r}, expected some above 0 and below 100.")
    size = values[0].numel()
    counts = [min(max(round(share * size / 100), 1), size - 1) for share in percentages]

    def batches(places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in torch.arange(len(values) * len(counts)).split(checked_batch_size(batch_size)):
            image = chunk // len(counts)
            removed = torch.stack([places[i] < counts[k] for i, k in zip(image, chunk % len(counts), strict=True)])
            yield imputed(pixels[image.to(pixels.device)], removed, noise=noise, seed=seed), classes[image]

    def probability(relevance: Tensor) -> Tensor:
        scores = target_logits(model, batches(ranks(relevance, seed=seed)), log_softmax=True)
        return scores.exp().view(len(values), -1).mean(1)

    if order == "combined":
        return (probability(-values) - probability(values)) / 2
    return probability(values if order == "morf" else -values)


def imputed(images: Tensor, removed: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    r"""Impute removed pixels by weighted means of their neighbours, plus noise (Rong et al. 2022).

    .. math:: x_p = \sum_{q \in N(p)} w_{pq} x_q \Big/ \sum_{q \in N(p)} w_{pq} + \varepsilon, \quad
        w = 1/6 \text{ (sides)}, 1/12 \text{ (corners)}

    Neighbours may themselves be removed: one sparse linear system per image.

    Parameters
    ----------
    images : Tensor (B, C, H, W)
    removed : bool Tensor (B, H, W)
        At least one pixel of each image is kept.
    noise : float
        Standard deviation, in the images' units; the same noise for each image.
    seed : int
        Seed of the noise.

    Returns
    -------
    Tensor
        (B, C, H, W), of the images' dtype and device.

    Raises
    ------
    CamhookError
        No pixel of an image is kept, or shapes differ.
    DependencyError
        SciPy is not installed.

    Examples
    --------
    >>> images, removed = torch.tensor([[[[1.0, 5.0, 3.0]]]]), torch.tensor([[[False, True, False]]])
    >>> imputed(images, removed, noise=0)
    tensor([[[[1., 2., 3.]]]])
    """
    if removed.shape != (len(images), *images.shape[2:]) or removed.dtype != torch.bool:
        found = f"{removed.dtype} {tuple(removed.shape)} for images {tuple(images.shape)}"
        raise CamhookError(f"Found removed pixels of {found}, expected bool (B, H, W); pass one mask per image.")
    if removed.flatten(1).all(1).any():
        raise CamhookError("Found an image with every pixel removed, expected some to fill from; remove fewer.")
    grain = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * noise
    height, width = images.shape[2:]
    weights = _neighbour_weights(height, width)
    filled = images.detach().cpu().double().flatten(2).numpy().copy()
    for picture, mask in zip(filled, removed.flatten(1).cpu().numpy(), strict=True):
        picture[:, mask] = _solved(weights, picture, mask) + grain.flatten(1).numpy()[:, mask]
    return torch.from_numpy(filled).view(images.shape).to(images)


def _neighbour_weights(height: int, width: int) -> Any:
    """Return the sparse (H * W, H * W) matrix of weights: 1/6 for the four sides, 1/12 for the corners of a pixel."""
    sparse = _scipy_sparse()
    rows, columns = (sparse.diags_array([np.ones(n - 1)] * 2, offsets=(-1, 1), shape=(n, n)) for n in (height, width))
    same_row, same_column = (sparse.diags_array(np.ones(n)) for n in (height, width))
    sides = sparse.kron(same_row, columns) + sparse.kron(rows, same_column)
    return (sides / 6 + sparse.kron(rows, columns) / 12).tocsr()


def _solved(weights: Any, picture: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the removed pixels' values, (C, n), from a picture (C, H * W) and its mask of removed pixels."""
    sparse = _scipy_sparse()
    beside = weights[mask]
    system = (sparse.diags_array(beside.sum(1)) - beside[:, mask]).tocsc()
    # Symmetric and diagonally dominant: no pivoting, with which this order of elimination would be very slow.
    factors = sparse.linalg.splu(
        system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    solution: npt.NDArray[np.float64] = factors.solve(beside[:, ~mask] @ picture[:, ~mask].T).T
    return solution


def _scipy_sparse() -> Any:
    try:
        import scipy.sparse.linalg  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        raise DependencyError(
            "ROAD solves for removed pixels with SciPy, which is not installed: pip install scipy"
        ) from error
    return scipy.sparse

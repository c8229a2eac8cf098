"""ROAD: remove pixels and fill the hole so that it does not show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError, DependencyError
from camhook.metrics.inputs import (
    Maps,
    Scorer,
    Target,
    as_images,
    as_maps,
    as_target,
    checked_batch_size,
    target_logits,
)
from camhook.metrics.perturbation import ranks

__all__ = ["imputed", "road"]

Order: TypeAlias = Literal["combined", "lerf", "morf"]
_NEIGHBOURS = [(y, x, 1 / 12 if y and x else 1 / 6) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def road(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Scorer,
    *,
    order: Order = "combined",
    percentages: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    noise: float = 0.01,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""Remove and debias: the target's probability once pixels are removed so that the hole does not show.

    .. math:: (\overline{P_\mathrm{lerf}} - \overline{P_\mathrm{morf}}) / 2

    with :math:`\overline P` the mean over percentages of the softmax probability of the target, the least relevant
    pixels removed first (higher is better) or the most relevant (lower is better), each replaced by `imputed` (Rong et
    al. 2022). The paper takes accuracy over a data set for P; the difference is the usual way to make one of the two.

    Parameters
    ----------
    order
        ``"combined"``, -0.5 to 0.5, higher is better; or ``"lerf"`` or ``"morf"`` alone, 0 to 1.
    percentages
        Of the pixels, above 0 and below 100.
    noise
        Standard deviation of what is added to removed pixels, in the images' own units.
    seed
        Of the noise, and of the order among ties; the same for all images.
    maps, images, target, model, batch_size
        As in `deletion`.

    Returns
    -------
    Tensor
        (B,)

    Raises
    ------
    CamhookError
        As in `deletion`; or an order is unknown, a percentage out of range.
    DependencyError
        SciPy, which solves for the removed pixels, is not installed.

    Examples
    --------
    >>> images = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    >>> model = lambda x: 99 * torch.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    >>> road([[[9.0, 3.0, 2.0, 1.0]]], images, 0, model, percentages=[50])  # lerf 1, morf 0
    tensor([0.5000], dtype=torch.float64)
    """
    if order not in ("combined", "lerf", "morf"):
        raise CamhookError(f"Found order={order!r}, expected 'combined', 'lerf' or 'morf'; pass one of those.")
    if order == "combined":
        least, most = (
            road(
                maps, images, target, model,
                order=each, percentages=percentages, noise=noise, batch_size=batch_size, seed=seed,
            )
            for each in ("lerf", "morf")
        )  # fmt: skip
        return (least - most) / 2
    values = as_maps(maps)
    pixels, classes = as_images(images, values), as_target(target, len(values))
    if not percentages or min(percentages) <= 0 or max(percentages) >= 100:
        raise CamhookError(
            f"Found percentages={percentages!r}, expected shares of the pixels; pass above 0, below 100."
        )
    size = values[0].numel()
    counts = [min(max(round(share * size / 100), 1), size - 1) for share in percentages]
    places = ranks(values if order == "morf" else -values, seed=seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in torch.arange(len(values) * len(counts)).split(checked_batch_size(batch_size)):
            image = chunk // len(counts)
            removed = torch.stack([places[i] < counts[k] for i, k in zip(image, chunk % len(counts), strict=True)])
            yield imputed(pixels[image.to(pixels.device)], removed, noise=noise, seed=seed), classes[image]

    return target_logits(model, batches(), log_softmax=True).exp().view(len(values), -1).mean(1)


def imputed(images: Tensor, removed: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    r"""Fill removed pixels by noisy linear imputation (Rong et al. 2022).

    Every removed pixel is the weighted mean of its neighbours, known and removed, so all are solved for at once:

    .. math:: x_p = \sum_{q \in N(p)} w_{pq} x_q \Big/ \sum_{q \in N(p)} w_{pq} + \varepsilon, \quad
        w = 1/6 \text{ (sides)}, 1/12 \text{ (corners)}

    Parameters
    ----------
    images
        (B, C, H, W).
    removed
        Boolean, (B, H, W); of each image at least one pixel must stay.

    Returns
    -------
    Tensor
        (B, C, H, W). The noise is the same for each image.

    Raises
    ------
    CamhookError
        Nothing is left of an image, or shapes differ.
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
        raise CamhookError(f"Found removed pixels of {found}, expected bool (B, H, W); pass one mask an image.")
    if removed.flatten(1).all(1).any():
        raise CamhookError("Found an image with every pixel removed, expected some to fill from; remove fewer.")
    grain = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * noise
    filled = images.detach().cpu().double().numpy().copy()
    for picture, mask in zip(filled, removed.cpu().numpy(), strict=True):
        picture[:, mask] = _solved(picture, mask) + grain.numpy()[:, mask]
    return torch.from_numpy(filled).to(images)


def _solved(picture: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the removed pixels' values, (C, n), from a picture (C, H, W) and its mask of removed pixels."""
    try:
        from scipy.sparse import coo_array  # type: ignore[import-untyped,unused-ignore]
        from scipy.sparse.linalg import splu  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        raise DependencyError(
            "ROAD solves for removed pixels with SciPy, which is missing: pip install scipy"
        ) from error
    height, width = mask.shape
    y, x = np.nonzero(mask)
    index, rows = np.full(mask.shape, -1), np.arange(len(y))
    index[mask] = rows
    diagonal, known, entries = np.zeros(len(y)), np.zeros((len(y), len(picture))), []
    for down, right, weight in _NEIGHBOURS:
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        row, beside = rows[inside], (y[inside] + down, x[inside] + right)
        diagonal[row] += weight
        column = index[beside]
        known[row] += weight * np.where(column < 0, picture[:, beside[0], beside[1]], 0).T
        entries.append((row[column >= 0], column[column >= 0], weight))
    row = np.concatenate([rows, *(entry[0] for entry in entries)])
    column = np.concatenate([rows, *(entry[1] for entry in entries)])
    data = np.concatenate([diagonal, *(np.full(len(entry[0]), -entry[2]) for entry in entries)])
    system = coo_array((data, (row, column)), shape=(len(y), len(y))).tocsc()
    # Symmetric and diagonally dominant: no pivoting, for which this order of elimination would be very slow.
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution: npt.NDArray[np.float64] = factors.solve(known).T
    return solution

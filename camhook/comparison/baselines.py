"""Baselines: what removed pixels are replaced by, and where path methods start (black, mean colour, blur, zero)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from camhook.errors import CamhookError, ImageError
from camhook.images.preprocessing import Preprocessing
from camhook.metrics import blurred
from camhook.suggestions import hint

__all__ = ["BASELINES", "Baseline", "BaselineFunction", "baseline_function", "described_baseline"]

BASELINES = {
    "black": "black pixels, in the model's own normalisation",
    "mean": "each image's own mean colour",
    "blur": "each image under a Gaussian blur, sigma 1/22 of its shorter side",
    "zero": "zeros in the model's input: the data set's mean colour where that is what preprocessing subtracts",
}

BaselineFunction: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to their baselines (B, C, H, W)."""
Baseline: TypeAlias = str | float | Tensor | BaselineFunction


def baseline_function(baseline: Baseline, preprocessing: Preprocessing | None) -> BaselineFunction:
    """Return the function from images to their baselines.

    Parameters
    ----------
    baseline : str, float, Tensor or callable
        One of `BASELINES`; a number, a colour (C, 1, 1) or an image (C, H, W) in the units of the model's input; or the
        function itself.
    preprocessing : Preprocessing or None
        The model's, which maps black pixels to its input.

    Raises
    ------
    CamhookError
        No baseline has that name, or preprocessing, which black needs, is not known.

    Examples
    --------
    >>> import timm, camhook
    >>> cam = camhook.wrap(timm.create_model("test_resnet"))
    >>> black = baseline_function("black", cam.preprocessing)
    >>> black(torch.zeros(1, 3, 2, 2))[0, :, 0, 0]  # (0 - mean) / std, both of which are 0.5
    tensor([-1., -1., -1.])
    """
    if baseline == "mean":
        return lambda images: images.mean((2, 3), keepdim=True).expand_as(images)
    if baseline == "blur":
        return _blurred
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise CamhookError(f"No baseline is named {baseline!r}. {hint(baseline, BASELINES)}")
        value = _black(preprocessing) if baseline == "black" else torch.zeros(())
    elif callable(baseline):
        return baseline
    else:
        value = torch.as_tensor(baseline).detach()

    def constant(images: Tensor) -> Tensor:
        try:
            return value.to(images).expand_as(images)
        except RuntimeError:
            raise ImageError(
                f"Found a baseline of shape {tuple(value.shape)} for images {tuple(images.shape)}, expected a number, "
                "a colour (C, 1, 1) or an image (C, H, W)."
            ) from None

    return constant


def described_baseline(baseline: Baseline) -> str:
    """Describe a baseline in words."""
    if isinstance(baseline, str):
        return f"{baseline}: {BASELINES[baseline]}"
    return f"{baseline} in the model's input" if isinstance(baseline, int | float) else "given by the caller"


def _black(preprocessing: Preprocessing | None) -> Tensor:
    """Return the model's input for black pixels, (C, 1, 1)."""
    try:
        if preprocessing is None:
            raise ImageError("The model has no known preprocessing.")
        batch = preprocessing([np.zeros((64, 64, 3), dtype=np.uint8)])
    except ImageError as error:
        raise CamhookError(
            "What black is to this model is not known, since its normalisation is not. Pass baseline= a number or a "
            f"tensor, 'zero', 'mean' or 'blur'; or data_config= to wrap. ({error})"
        ) from error
    return batch.tensor[0].double().mean((1, 2), keepdim=True)


def _blurred(images: Tensor) -> Tensor:
    sigma = min(images.shape[2:]) / 22
    return blurred(images, kernel_size=2 * max(round(3 * sigma), 1) + 1, sigma=sigma)

"""What a removed pixel becomes: an explanation by removal, or along a path, explains the difference from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from camhook.errors import CamhookError, ImageError
from camhook.metrics.perturbation import blurred

if TYPE_CHECKING:
    from camhook.cam import CAM
from camhook.suggestions import hint

__all__ = ["BASELINES", "Reference", "reference"]

BASELINES = {
    "black": "black pixels, in the model's own normalisation",
    "mean": "each image's own mean colour",
    "blur": "each image under a Gaussian blur, sigma 1/22 of its shorter side",
    "zero": "zeros in the model's input: the data set's mean colour where that is what preprocessing subtracts",
}

Reference = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to what stands for each where a pixel is removed, (B, C, H, W)."""


def reference(cam: CAM, baseline: str | float | Tensor = "black") -> Reference:
    """Return the function that gives images their baseline.

    Parameters
    ----------
    cam
        The wrapped model, which knows what black is to it.
    baseline
        One of `BASELINES`, a number, a colour (C, 1, 1) or a picture (C, H, W), in the units of the model's input.

    Raises
    ------
    CamhookError
        There is no baseline of that name, or the model's normalisation, which black needs, is not known.

    Examples
    --------
    >>> import timm, camhook
    >>> black = reference(camhook.wrap(timm.create_model("test_resnet")), "black")
    >>> black(torch.zeros(1, 3, 2, 2))[0, :, 0, 0]  # (0 - mean) / std, and both are 0.5
    tensor([-1., -1., -1.])
    """
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise CamhookError(f"No baseline is named {baseline!r}. {hint(baseline, BASELINES)}")
        if baseline == "mean":
            return lambda images: images.mean((2, 3), keepdim=True).expand_as(images)
        if baseline == "blur":
            return _blur
        value = _black(cam) if baseline == "black" else torch.zeros(())
    else:
        value = torch.as_tensor(baseline).detach()

    def constant(images: Tensor) -> Tensor:
        try:
            return value.to(images).expand_as(images)
        except RuntimeError:
            raise ImageError(
                f"Found a baseline of shape {tuple(value.shape)} for images {tuple(images.shape)}, expected a number, "
                "a colour (C, 1, 1) or a picture (C, H, W)."
            ) from None

    return constant


def _black(cam: CAM) -> Tensor:
    """Return what black is to a model, (C, 1, 1), by preprocessing a black picture."""
    try:
        tensor, _ = cam.inputs([np.zeros((64, 64, 3), dtype=np.uint8)])
    except ImageError as error:
        raise CamhookError(
            "What black is to this model is not known, since its normalisation is not. Pass baseline= a number or a "
            f"tensor, 'zero', 'mean' or 'blur'; or data_config= to wrap. ({error})"
        ) from error
    return tensor[0].mean((1, 2), keepdim=True)


def _blur(images: Tensor) -> Tensor:
    sigma = min(images.shape[2:]) / 22
    return blurred(images, kernel_size=2 * max(round(3 * sigma), 1) + 1, sigma=sigma)

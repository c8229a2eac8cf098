"""Every error camhook raises on purpose; each says what was found, what was expected and what to do."""

from __future__ import annotations


class CamhookError(Exception):
    """Base of all errors that camhook raises on purpose."""


class UnsupportedModelError(CamhookError):
    """The model has no head, or no spatial features, that camhook can read."""


class LayoutError(CamhookError):
    """Which axes of the features are channels and which are positions could not be established."""


class HookError(CamhookError):
    """The forward pass did not go through the layer that the map is read from."""


class CompletenessError(CamhookError):
    """A map does not add up to the model's own score within tolerance (raised under ``strict=True``)."""


class ProbeMismatchError(CamhookError):
    """A probe file belongs to another model, layer or width."""


class ImageError(CamhookError):
    """An image or a tensor of images cannot be used as it is."""


class TargetError(CamhookError):
    """A class was asked for that the model does not have, or that is ambiguous."""


class OutputError(CamhookError):
    """A result cannot be written where it was asked to go without harming what is there."""


class DependencyError(CamhookError, ImportError):
    """A package, or a system library behind it, is missing."""

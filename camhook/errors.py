"""Exceptions; each message says what was found, what was expected and what to do."""

from __future__ import annotations


class CamhookError(Exception):
    """Base class of all exceptions that camhook raises."""


class UnsupportedModelError(CamhookError):
    """The model has no classifier head, or no feature map, that camhook can read."""


class LayoutError(CamhookError):
    """Which axes of a feature tensor are channels and which are positions could not be determined."""


class HookError(CamhookError):
    """The forward pass did not call the layer that the map is read from."""


class CompletenessError(CamhookError):
    """A map does not add up to the model's own score within tolerance (raised with ``strict=True``)."""


class ProbeMismatchError(CamhookError):
    """A probe file belongs to another model, layer or width."""


class ImageError(CamhookError):
    """An image or a tensor of images cannot be used as it is."""


class TargetError(CamhookError):
    """A class was asked for that the model does not have, or that is ambiguous."""


class OutputError(CamhookError):
    """A file cannot be written, or exists and was not written by camhook."""


class DependencyError(CamhookError, ImportError):
    """A package, or a system library behind it, is missing."""

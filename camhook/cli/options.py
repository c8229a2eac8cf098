"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["model_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Add the options that say which weights a model has, ``--checkpoint`` and ``--num-classes``."""
    checkpoint = click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False),
        help="Weights for the model: safetensors, or a PyTorch file (read without running code from it).",
    )
    num_classes = click.option(
        "--num-classes", type=int, help="Classes of the model in the checkpoint, if other than the default."
    )
    return checkpoint(num_classes(command))

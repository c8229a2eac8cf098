"""Options that several commands share, so that they are called and described alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["class_options", "device_option", "model_options", "name_option", "overwrite_option", "probe_option"]

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Add ``--checkpoint`` and ``--num-classes``: the model's weights and their classes."""
    checkpoint = click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False),
        help="Weights for the model: safetensors, or a PyTorch file (read without running code from it).",
    )
    num_classes = click.option(
        "--num-classes", type=int, help="Classes of the model in the checkpoint, if other than the default."
    )
    return checkpoint(num_classes(command))


def class_options(command: Command) -> Command:
    """Add ``--target`` (``targets``, indices or names; repeatable) and ``--topk``: the classes to explain."""
    target = click.option(
        "--target",
        "targets",
        multiple=True,
        type=_index_or_name,
        metavar="CLASS",
        help="A class, by index or name; repeatable.",
    )
    topk = click.option("--topk", type=int, help="The K classes with the highest scores, instead of --target.")
    return target(topk(command))


def _index_or_name(given: str) -> int | str:
    return int(given) if given.isdecimal() else given


name_option = click.option("--model", "name", required=True, help="A timm architecture, hf-hub:NAME, or demo.")

probe_option = click.option(
    "--probe",
    type=click.Path(path_type=Path),
    help="Explain the scores of this probe, a file that camhook fit wrote, instead of the model's.",
)

device_option = click.option("--device", help="cpu, cuda or cuda:N. Default: a GPU if there is one.")

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that camhook did not write.")

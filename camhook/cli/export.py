"""Command ``export``: a model with its maps in one file, ONNX or torch's exported program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from camhook.cli.loading import load_model
from camhook.cli.options import class_options, model_options, overwrite_option, probe_option

__all__ = ["export"]


@click.command()
@click.argument("model")
@model_options
@class_options
@probe_option
@click.option("--input-size", type=int, nargs=2, help="Height and width of the images, if other than the model's own.")
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .onnx file, or .pt2 for torch."
)
@overwrite_option
def export(
    model: str,
    checkpoint: str | None,
    num_classes: int | None,
    targets: Sequence[int | str],
    topk: int | None,
    probe: Path | None,
    input_size: tuple[int, int] | None,
    output: Path,
    overwrite: bool,
) -> None:
    """Write MODEL with its maps to one file: images in, logits and maps out, for batches of any size.

    Maps are those of the --target classes ("--target all": all of them), or of the --topk classes with the highest
    scores in each image, by default of one. The file runs without camhook, an .onnx file without torch too. It is run
    and compared with the model before it takes its place.
    """
    from camhook import wrap

    made = load_model(model, checkpoint, num_classes)
    cam = wrap(made, probe=probe, input_size=input_size, method="probe" if probe else "auto")
    wanted: Any = "all" if list(targets) == ["all"] else list(targets) or None
    click.echo(cam.export(output, wanted, topk=topk, overwrite=overwrite))

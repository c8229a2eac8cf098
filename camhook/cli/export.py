"""``camhook export``: a model and its maps in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from camhook.cli.options import model_options

__all__ = ["export"]


@click.command()
@click.argument("model")
@model_options
@click.option("--probe", type=click.Path(path_type=Path), help="The scores of this probe (see fit) instead.")
@click.option("--target", "targets", multiple=True, help="A class, by index or name; may be repeated. Or: all.")
@click.option("--topk", type=int, help="The so many classes with the highest scores, instead of targets; default 1.")
@click.option("--input-size", type=int, nargs=2, help="Height and width of the images, if other than the model's own.")
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .onnx file, or .pt2 for torch."
)
@click.option("--overwrite", is_flag=True, help="Replace a file that camhook did not write.")
def export(
    model: str,
    checkpoint: str | None,
    num_classes: int | None,
    probe: Path | None,
    targets: Sequence[str],
    topk: int | None,
    input_size: tuple[int, int] | None,
    output: Path,
    overwrite: bool,
) -> None:
    """Write MODEL with its maps to one file: images in, logits and maps out, batches of any size.

    It runs without camhook, an .onnx file without torch too. The file is run again and compared before it is believed.
    """
    from camhook import wrap
    from camhook.cli.loading import load_model

    cam = wrap(
        load_model(model, checkpoint, num_classes),
        probe=probe,
        input_size=input_size,
        method="probe" if probe else "auto",
    )
    wanted: Any = "all" if list(targets) == ["all"] else [int(t) if t.isdecimal() else t for t in targets] or None
    click.echo(cam.export(output, wanted, topk=topk, overwrite=overwrite))

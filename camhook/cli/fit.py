"""Command ``camhook fit``: a probe on frozen features; on several processes under ``torchrun -m camhook fit``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from camhook.cli.loading import load_model
from camhook.cli.options import device_option, model_options, name_option, overwrite_option
from camhook.errors import OutputError
from camhook.files import SOFTWARE, check_overwrite, save_png, write_bytes

__all__ = ["fit"]

_DTYPES = ("bfloat16", "float16")


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@name_option
@model_options
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), hidden=True)  # earlier name of --checkpoint
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The probe's file.")
@overwrite_option
@click.option("--targets", type=click.Choice(["labels", "logits"]), default="labels", show_default=True)
@click.option("--pool", type=click.Choice(["gap", "attention"]), default="gap", show_default=True)
@click.option("--solver", type=click.Choice(["ridge", "logistic"]), default="ridge", show_default=True)
@click.option("--penalty", type=float, multiple=True, help="Several: the best of them. Default: a grid (ridge), 1.")
@click.option("--standardize/--no-standardize", default=None, help="Default: for logistic.")
@click.option("--balanced", is_flag=True, help="Have all classes weigh the same.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images.")
@device_option
@click.option("--autocast", type=click.Choice(_DTYPES), help="Run the model in this precision.")
@click.option("--channels-last", is_flag=True, help="Give the model images in that memory format.")
@click.option("--holdout", type=float, default=0.1, show_default=True, help="Share of images to measure by.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the hold-out and the folds.")
@click.option(
    "--resume", type=click.Path(path_type=Path), help="A folder for pooled features; the command goes on from it."
)
@click.option("--checkpoint-every", type=float, default=60.0, show_default=True, help="Seconds between writes.")
@click.option("--max-skipped", type=float, default=0.05, show_default=True, help="Share that may be unreadable.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as JSON.")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="Draw the report (PNG).")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
def fit(
    data: Path,
    name: str,
    checkpoint: str | None,
    weights: str | None,
    num_classes: int | None,
    output: Path,
    overwrite: bool,
    penalty: tuple[float, ...],
    balanced: bool,
    workers: int,
    device: str | None,
    resume: Path | None,
    autocast: str | None,
    report: Path | None,
    figure: Path | None,
    no_progress: bool,
    **options: Any,
) -> None:
    """Fit a probe on a model's frozen features: a linear head whose maps are exact.

    DATA is a folder with a folder of images for each class; for --targets logits, which needs no labels, any folder of
    images; or a folder of pooled features that an earlier --resume wrote. Unreadable images are skipped and listed.

    --resume PATH keeps the pooled features, 4 bytes each: after an interruption the same command goes on from there,
    and another --solver, --penalty or --balanced on the same images does not run the model again.

    On several processes or machines: torchrun --nproc-per-node N -m camhook fit ...
    """
    import torch

    from camhook import wrap
    from camhook.distributed import Ranks

    if checkpoint and weights:
        raise click.UsageError("--weights is an earlier name of --checkpoint; pass one of them.")
    if not output.parent.is_dir():
        raise OutputError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
    check_overwrite([file for file in (report, figure) if file is not None], overwrite=overwrite)
    mine = Ranks.from_environment()
    place = mine.device_for(device)
    with mine.joined(place) as ranks:
        _log_to_stderr(ranks.rank)
        cam = wrap(load_model(name, checkpoint or weights, num_classes).to(place))
        found = cam.fit(
            data,
            penalty=(penalty[0] if len(penalty) == 1 else penalty) if penalty else None,
            class_weight="balanced" if balanced else None,
            num_workers=workers,
            checkpoint=resume,
            autocast=getattr(torch, autocast) if autocast else None,
            progress=not no_progress,
            **options,
        )
        if ranks.rank > 0:
            return
        assert cam.probe is not None
        cam.probe.save(output, overwrite=overwrite)
        click.echo(f"{found}\nWrote {output}.")
        if report is not None:
            write_bytes(report, json.dumps({"software": SOFTWARE, **found.as_dict()}, indent=2).encode())
        if figure is not None:
            save_png(found.figure(), figure, overwrite=overwrite)


def _log_to_stderr(rank: int) -> None:
    logger = logging.getLogger("camhook")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)

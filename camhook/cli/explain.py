"""Command ``explain``: overlays, raw maps and manifests of photos, on one or more processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from camhook.cli.loading import load_model
from camhook.cli.options import (
    class_options,
    device_option,
    model_options,
    name_option,
    overwrite_option,
    probe_option,
)
from camhook.errors import OutputError

__all__ = ["explain"]


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@name_option
@model_options
@class_options
@click.option("--rivals", is_flag=True, help="Contrast each class with its ten strongest rivals.")
@probe_option
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="A directory; for one photo also a .png file."
)
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Draw, or write raw maps only.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Photos per forward pass.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that read, and as many that draw and write; 0: do all in one. Default: by the number of cores, and "
    "0 for a single batch.",
)
@device_option
@overwrite_option
def explain(
    photos: Sequence[Path],
    name: str,
    checkpoint: str | None,
    num_classes: int | None,
    targets: Sequence[int | str],
    topk: int | None,
    rivals: bool,
    probe: Path | None,
    output: Path,
    overlays: bool,
    batch_size: int,
    workers: int | None,
    device: str | None,
    overwrite: bool,
) -> None:
    """Explain PHOTOS (files, or folders of them) and write overlays, raw maps and a manifest for each.

    Photos that cannot be read are skipped, listed, also in a file skipped.txt in the output directory, and the exit
    status is 1 then.

    The same command resumes where it was stopped: a photo is done when its manifest is there, made with the same model
    and options, and the photo is unchanged.

    On several processes or machines, each of which takes a part of the photos: torchrun --nproc-per-node N -m camhook
    explain ..., or RANK and WORLD_SIZE (and LOCAL_RANK, for the GPU) in the environment.
    """
    import numpy as np

    from camhook import wrap
    from camhook.distributed import Ranks
    from camhook.folders.explaining import explain_folder
    from camhook.folders.photos import Selection, list_photos, settings_of
    from camhook.folders.writing import Writer

    ranks = Ranks.from_environment()
    listed = list_photos(photos)
    mine = ranks.of(listed)
    single = output.suffix.lower() == ".png"
    if single and len(listed) > 1:
        raise OutputError(f"{len(listed)} photos were given and one file, {output}. Pass a directory as --output.")
    if single and not overlays:
        raise OutputError(f"--no-overlays leaves no picture to write to {output}. Pass a directory as --output.")
    if output.suffix and not single and not output.is_dir():
        raise OutputError(f"{output}: a path that ends in .png or a directory was expected, found {output.suffix!r}.")
    model = load_model(name, checkpoint, num_classes).to(ranks.device_for(device))
    cam = wrap(model, probe=probe, method="probe" if probe else "auto")
    if cam.probe is not None:
        click.echo(cam.probe)
    selection = Selection(list(targets) or None, topk, rivals)
    if single:
        for photo in mine:
            result = cam(photo.path, **selection.arguments(1))
            result.save(output, overwrite=overwrite)
            for position in range(result.target.shape[1]):
                click.echo(f"{photo.name}: {result.caption(0, position)}")
            click.echo(f"Explained 1 of 1 photos; wrote to {output}.")
        return
    cam.inputs(np.zeros((64, 64, 3), dtype=np.uint8))  # fails here, and not photo by photo, without preprocessing
    settings = settings_of(cam, selection, probe=probe, overlays=overlays)
    if workers is None:
        workers = ranks.workers() if len(mine) > batch_size else 0
    writer = Writer(output, settings, overlays, overwrite)
    if status := explain_folder(cam, mine, selection, writer, ranks=ranks, batch_size=batch_size, workers=workers):
        sys.exit(status)

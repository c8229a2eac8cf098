"""The command line's ``camhook explain``; on several processes under ``torchrun -m camhook explain``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from camhook.cli.loading import load_model
from camhook.cli.options import model_options
from camhook.errors import OutputError

__all__ = ["explain"]


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "name", required=True, help="A timm architecture, hf-hub:NAME, or demo.")
@model_options
@click.option("--target", "targets", multiple=True, help="A class, by index or name; may be repeated.")
@click.option("--topk", type=int, help="The so many classes with the highest scores, instead of targets.")
@click.option("--rivals", is_flag=True, help="Explain why this class and not its ten strongest rivals.")
@click.option("--probe", type=click.Path(path_type=Path), help="Explain the scores of this probe (see fit) instead.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="A directory; one photo: or a .png file."
)
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Draw, or write raw maps only.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="So many processes read, and as many draw and write; 0: all in one. Default: by the cores, and 0 for a batch.",
)
@click.option("--device", help="Default: a GPU if there is one.")
@click.option("--overwrite", is_flag=True, help="Replace files that camhook did not write.")
def explain(
    photos: Sequence[Path],
    name: str,
    checkpoint: str | None,
    num_classes: int | None,
    targets: Sequence[str],
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

    The same command goes on where it was stopped: a photo is done when its manifest is there, made by the same model
    and options of the photo as it is.

    On several processes or machines, each of which takes a share: torchrun --nproc-per-node N -m camhook explain ...,
    or RANK and WORLD_SIZE (and LOCAL_RANK, for the GPU) in the environment.
    """
    import numpy as np

    from camhook import wrap
    from camhook.distributed import Ranks
    from camhook.folders.explaining import Question
    from camhook.folders.photos import list_photos
    from camhook.folders.records import settings_of
    from camhook.folders.running import Run
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
    wanted = [int(t) if t.isdecimal() else t for t in targets] or None
    if single:
        for photo in mine:
            contrast = "rivals" if rivals else None
            result = cam(photo.path, None if wanted is None else [wanted], topk=topk, contrast=contrast)
            result.save(output, overwrite=overwrite)
            for position in range(result.target.shape[1]):
                click.echo(f"{photo.name}: {result.caption(0, position)}")
            click.echo(f"Explained 1 of 1 photos; wrote to {output}.")
        return
    cam.inputs(np.zeros((64, 64, 3), dtype=np.uint8))  # where no photo can be preprocessed, it says so now
    settings = settings_of(cam, targets=wanted, topk=topk, rivals=rivals, probe=probe, overlays=overlays)
    if workers is None:
        workers = ranks.workers() if len(mine) > batch_size else 0
    run = Run(mine, ranks, Writer(output, settings, overlays, overwrite), batch_size, workers)
    if status := run(cam, Question(wanted, topk, rivals)):
        sys.exit(status)

"""Command ``camhook compare``: attribution methods compared, with labels and boxes from files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camhook.adapters.timm import imagenet_index
from camhook.cli.loading import load_model
from camhook.cli.options import model_options, overwrite_option
from camhook.errors import CamhookError, ImageError, TargetError
from camhook.images.loading import photo_files, unique_names
from camhook.text_tables import text_table

if TYPE_CHECKING:
    from camhook.cam import CAM

__all__ = ["compare", "read_boxes", "read_labels"]


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", "name", help="A timm architecture, hf-hub:NAME, or demo.")
@model_options
@click.option("--methods", help="Attribution methods, separated by commas, or all. Default: all but two.")
@click.option("--metrics", help="Metrics, separated by commas, or all. Default: all but the expensive ones.")
@click.option("--target", help="The class to explain, by index or name. Default: the label, else the predicted class.")
@click.option("--labels", is_flag=True, help="Photos lie in folders named by their class: index, name or WordNet id.")
@click.option(
    "--boxes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with columns photo, left, top, right, bottom: the object's box, in the photo's pixels.",
)
@click.option(
    "--baseline",
    type=click.Choice(["black", "blur", "mean", "zero"]),
    default="black",
    show_default=True,
    help="What replaces removed pixels.",
)
@click.option(
    "--segments",
    type=click.Choice(["grid", "superpixels"]),
    default="grid",
    show_default=True,
    help="What FeatureAblation, KernelShap, Lime and ShapleyValueSampling remove as a whole.",
)
@click.option("--steps", type=click.IntRange(1), default=28, show_default=True, help="Steps of insertion and deletion.")
@click.option("--batch-size", type=click.IntRange(1), help="Images per forward pass. Default 4 on a CPU, else 32.")
@click.option("--output", type=click.Path(path_type=Path), help="A directory; or a .html, .csv, .json or .png file.")
@overwrite_option
@click.option("--list", "lists", is_flag=True, help="List the methods and metrics, and exit.")
def compare(
    photos: Sequence[Path],
    name: str | None,
    checkpoint: str | None,
    num_classes: int | None,
    methods: str | None,
    metrics: str | None,
    target: str | None,
    labels: bool,
    boxes: Path | None,
    baseline: str,
    segments: Any,
    steps: int,
    batch_size: int | None,
    output: Path | None,
    overwrite: bool,
    lists: bool,
) -> None:
    """Compare camhook's maps with Captum's attributions on PHOTOS (files, or folders of them), and write a report.

    Controls that do not depend on the model are always included. --steps 224 is the literature's value, and slow.
    """
    if lists:
        click.echo(_listing())
        return
    if not photos or name is None or output is None:
        missing = "PHOTOS" if not photos else "--model" if name is None else "--output"
        raise click.UsageError(f"{missing} is missing. `camhook compare --list` lists methods and metrics.")
    from camhook import wrap
    from camhook.comparison.comparing import compare as run
    from camhook.comparison.methods import chosen_methods

    files = list(photo_files(photos))
    wanted = _names(methods)
    chosen_methods(wanted)  # raises before the model is loaded if a name is unknown
    cam = wrap(load_model(name, checkpoint, num_classes))
    found = run(
        cam,
        files,
        target=int(target) if target is not None and target.isdecimal() else target,
        methods=wanted,
        metrics=_names(metrics),
        boxes=None if boxes is None else read_boxes(boxes, files),
        labels=read_labels(files, cam) if labels else None,
        baseline=baseline,
        segments=segments,
        steps=steps,
        batch_size=batch_size,
        progress=True,
    ).renamed(list(unique_names(files).values()))
    click.echo(str(found))
    for method, notes in found.notes.items():
        for note in notes:
            click.echo(f"{method}: {note}")
    click.echo("Wrote " + ", ".join(found.save(output, overwrite=overwrite)))


def read_labels(files: Sequence[Path], cam: CAM) -> list[int]:
    """Return each photo's class by the name of its folder: an index, a WordNet id, or a class name.

    Raises
    ------
    TargetError
        A folder's name is none of these.
    """
    folders = [file.resolve().parent.name for file in files]
    labels = []
    for file, folder, imagenet in zip(files, folders, imagenet_index(folders), strict=True):
        if folder.isdecimal():
            labels.append(int(folder))
        elif imagenet is not None and len(cam.class_names) == 1000:
            labels.append(imagenet)
        else:
            try:
                labels.append(cam.class_names.index(folder.replace("_", " ")))
            except TargetError as error:
                raise TargetError(
                    f"{file} lies in the folder {folder!r}, expected one named by its class: an index, a name or a "
                    f"WordNet id. ({error})"
                ) from error
    return labels


def read_boxes(path: Path, files: Sequence[Path]) -> list[list[list[float]]]:
    """Return each photo's boxes out of a CSV with the columns photo (its file name), left, top, right, bottom.

    Raises
    ------
    ImageError
        A photo has no box.
    CamhookError
        A column is missing, or a number is none.
    """
    columns = ("left", "top", "right", "bottom")
    boxes: dict[str, list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if missing := {"photo", *columns} - set(reader.fieldnames or ()):
            raise CamhookError(f"{path} lacks the column {min(missing)!r}, found {reader.fieldnames}; add it.")
        for line in reader:
            try:
                boxes.setdefault(line["photo"], []).append([float(line[column]) for column in columns])
            except (TypeError, ValueError) as error:
                raise CamhookError(f"{path}, line {reader.line_num}: four numbers were expected. ({error})") from error
    without = [file.name for file in files if file.name not in boxes]
    if without:
        raise ImageError(f"{path} has no box for {without[0]} ({len(without)} in all). Add a line, or leave it out.")
    return [boxes[file.name] for file in files]


def _names(given: str | None) -> str | list[str] | None:
    if given is None or given == "all":
        return given
    return [name.strip() for name in given.split(",") if name.strip()]


def _listing() -> str:
    from camhook.comparison.methods import METHODS
    from camhook.metrics import METRICS

    methods = [(name, each.definition) for name, each in METHODS.items()]
    metrics = [
        (name, f"{each.definition} {'Higher' if each.higher_is_better else 'Lower'} is better.")
        for name, each in METRICS.items()
    ]
    return f"Methods:\n{text_table(methods, indent='  ')}\n\nMetrics:\n{text_table(metrics, indent='  ')}"

"""The command line: ``camhook demo``, ``explain``, ``export``, ``fit``, ``describe``, ``models``, ``check``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from camhook.cli.compare import compare
from camhook.cli.explain import explain
from camhook.cli.export import export
from camhook.cli.fit import fit
from camhook.cli.loading import create, load_model, unknown_architecture
from camhook.cli.options import model_options
from camhook.errors import CamhookError, OutputError

__all__ = ["main"]


class _Group(click.Group):
    """Shows camhook's own errors as a message and not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CamhookError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="camhook")
def main() -> None:
    """Where in the picture did the score come from? Exact class activation maps for any trained timm classifier."""


@main.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("camhook_demo.png"),
    show_default=True,
    help="Where to write the montage.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that camhook did not write.")
def demo(output: Path, overwrite: bool) -> None:
    """Explain real photos with a small ImageNet model; no network needed."""
    started = time.perf_counter()
    from camhook import wrap
    from camhook.demo import demo_model, demo_photos
    from camhook.drawing.montage import montage
    from camhook.files import save_png

    cam, photos = wrap(demo_model()), demo_photos()
    click.echo(f"{cam.describe()}\n")
    shown: list[tuple[str, list[str], str | None]] = [
        ("chelsea.png", ["tiger cat"], "rivals"),
        ("coffee.png", ["espresso", "cup"], None),
        ("camera.png", ["tripod"], "rivals"),
        ("motorcycle_left.png", ["moped"], "rivals"),
    ]
    rows = []
    for name, classes, contrast in shown:
        result = cam(photos[name], [classes])
        click.echo(f"{name}: {result.caption()}")
        row = result.panels()
        if contrast:
            against = cam(photos[name], [classes], contrast=contrast)
            click.echo(f"{name}: {against.caption()}")
            row += against.panels()[1:]
        else:
            click.echo(f"{name}: {result.caption(0, 1)}")
        rows.append(row)
    page = montage(
        rows,
        cell=(260, 260),
        title="What was the model looking at?",
        footer="tf_efficientnet_lite0, ImageNet. Colour is positive evidence in logits; the mean of a map plus its "
        "offset is the model's own score. Red is the largest value of a result. Grey: cropped away, not seen.",
    )
    save_png(page, output, overwrite=overwrite)
    click.echo(f"\nWrote {output} in {time.perf_counter() - started:.1f} s.")


main.add_command(compare)
main.add_command(explain)
main.add_command(export)
main.add_command(fit)


@main.command()
@click.argument("model")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def describe(model: str, checkpoint: str | None, num_classes: int | None, as_json: bool) -> None:
    """Say where and how MODEL's map is read: layer, layout, grid, pooling, tail. Its weights are not needed."""
    from camhook import wrap

    if checkpoint is None and model != "demo":
        found = wrap(create(model, num_classes=num_classes)).describe()
    else:
        found = wrap(load_model(model, checkpoint, num_classes)).describe()
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))


@main.command()
@click.argument("pattern", default="*")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--jobs", type=click.IntRange(1), help="How many processes; default one for each core.")
def models(pattern: str, form: Any, output: Path | None, overwrite: bool, jobs: int | None) -> None:
    """Tell what camhook makes of timm's architectures: all, or those whose name matches PATTERN.

    PATTERN may hold wildcards (*, ?); without any, it is a name or part of one. No weights are needed. An architecture
    that comes without a classifier has pooling "none", and a second row, made with ten classes, where it takes any.
    """
    import os

    import timm
    from tqdm import tqdm

    from camhook.cli import models as zoo

    if output is not None and output.exists() and not overwrite:
        raise OutputError(f"{output} is there already. Pass --overwrite, or another --output.")
    names = timm.list_models(pattern) or timm.list_models(f"*{pattern}*")
    if not names:
        raise unknown_architecture(pattern)

    def progress(rows: Iterator[Any], total: int) -> Any:
        return tqdm(rows, total=total, unit="model", file=sys.stderr)

    rows = zoo.survey(names, min(jobs or os.cpu_count() or 1, len(names)), progress=progress)
    text = zoo.rendered(rows, form)
    if output is None:
        click.echo(text)
    else:
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {error}. Pass another --output.") from error
    click.echo(("\n" if output is None else "") + zoo.summary(rows), err=output is None and form != "table")


@main.command()
@click.argument("model")
@model_options
@click.option("--pretrained", is_flag=True, help="Fetch timm's pretrained weights.")
@click.option("--photo", type=click.Path(path_type=Path), help="A photo to check on, instead of random noise.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    model: str, checkpoint: str | None, num_classes: int | None, pretrained: bool, photo: Path | None, as_json: bool
) -> None:
    """Check MODEL in real numbers: whether its maps add up and agree with Captum, and what they cost.

    Without --checkpoint or --pretrained the weights are random, and jittered, so that none is zero. The exit status is
    1 if a map does not add up, or if Captum disagrees where it computes the same.
    """
    from camhook.cli import check as checks

    trained = pretrained or checkpoint is not None or model == "demo"
    made = load_model(model, checkpoint, num_classes) if trained else create(model, num_classes=num_classes)
    found = checks.check(made, photo, untrained=not trained)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
    if not found.passed:
        raise click.ClickException(f"{model} failed the check.")

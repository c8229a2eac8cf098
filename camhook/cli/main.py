"""The command line: ``camhook demo``, ``explain``, ``export``, ``fit``, ``describe``, ``models``, ``check``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from camhook.cli.check import check
from camhook.cli.compare import compare
from camhook.cli.explain import explain
from camhook.cli.export import export
from camhook.cli.fit import fit
from camhook.cli.models import describe, models
from camhook.errors import CamhookError

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


for command in (check, compare, describe, explain, export, fit, models):
    main.add_command(command)

"""Command ``demo``: photos explained by a small ImageNet model, in a montage."""

from __future__ import annotations

import time
from pathlib import Path

import click

from camhook.cli.options import overwrite_option

__all__ = ["demo"]


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("camhook_demo.png"),
    show_default=True,
    help="Where to write the montage.",
)
@overwrite_option
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

"""The command line: ``camhook demo``, ``camhook explain``, ``camhook describe``."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from camhook.errors import CamhookError, ImageError, OutputError, UnsupportedModelError

__all__ = ["main"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_model_options = [
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False),
        help="Weights for the model: safetensors, or a PyTorch file (read without running code from it).",
    ),
    click.option("--num-classes", type=int, help="Classes of the model in the checkpoint, if other than the default."),
]


class _Group(click.Group):
    """Shows camhook's own errors as a message and not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CamhookError as error:
            raise click.ClickException(str(error)) from error


def _with_model_options(command: Any) -> Any:
    for option in reversed(_model_options):
        command = option(command)
    return command


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
    from camhook.montage import montage
    from camhook.saving import save_png

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


@main.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "name", required=True, help="A timm architecture, hf-hub:NAME, or demo.")
@_with_model_options
@click.option("--target", "targets", multiple=True, help="A class, by index or name; may be repeated.")
@click.option("--topk", type=int, help="The so many classes with the highest scores, instead of targets.")
@click.option("--rivals", is_flag=True, help="Explain why this class and not its ten strongest rivals.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="A directory; one photo: or a .png file."
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace files that camhook did not write.")
def explain(
    photos: Sequence[Path],
    name: str,
    checkpoint: str | None,
    num_classes: int | None,
    targets: Sequence[str],
    topk: int | None,
    rivals: bool,
    output: Path,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Explain PHOTOS (files, or folders of them) and write overlays, raw maps and a manifest for each.

    Photos that cannot be read are skipped and listed, and the exit status is 1 then.
    """
    from tqdm import tqdm

    from camhook import wrap

    files = list(_photo_files(photos))
    if output.suffix.lower() == ".png" and len(files) > 1:
        raise OutputError(f"{len(files)} photos were given and one file, {output}. Pass a directory as --output.")
    names = _unique_names(files)
    cam = wrap(_load_model(name, checkpoint, num_classes))
    wanted: Any = [int(t) if t.isdecimal() else t for t in targets] or None
    skipped = []
    with tqdm(total=len(files), unit="photo", disable=len(files) < 4) as bar:
        for start in range(0, len(files), batch_size):
            batch = []
            for file in files[start : start + batch_size]:
                try:
                    batch.append((file, _readable(file)))
                except ImageError as error:
                    skipped.append(str(error))
            if batch:
                result = cam(
                    [photo for _, photo in batch],
                    None if wanted is None else [wanted] * len(batch),
                    topk=topk,
                    contrast="rivals" if rivals else None,
                ).renamed([names[file] for file, _ in batch])
                result.save(output, overwrite=overwrite)
                for index in range(len(result)):
                    for position in range(result.target.shape[1]):
                        tqdm.write(f"{result.names[index]}: {result.caption(index, position)}", file=sys.stdout)
            bar.update(min(batch_size, len(files) - start))
    click.echo(f"Explained {len(files) - len(skipped)} of {len(files)} photos; wrote to {output}.")
    if skipped:
        raise click.ClickException("skipped:\n  " + "\n  ".join(skipped))


@main.command()
@click.argument("model")
@_with_model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def describe(model: str, checkpoint: str | None, num_classes: int | None, as_json: bool) -> None:
    """Say where and how MODEL's map is read: layer, layout, grid, pooling, tail. Its weights are not needed."""
    from camhook import wrap

    if checkpoint is None and model != "demo":
        found = wrap(_create(model, num_classes=num_classes)).describe()
    else:
        found = wrap(_load_model(model, checkpoint, num_classes)).describe()
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))


def _load_model(name: str, checkpoint: str | None, num_classes: int | None) -> Any:
    """Make a timm model with its pretrained weights, or with those of a file."""
    if name == "demo":
        if checkpoint or num_classes:
            raise UnsupportedModelError(
                "The demo model has its own weights: --checkpoint and --num-classes do not go with it."
            )
        from camhook.demo import demo_model

        return demo_model()
    if checkpoint is None:
        return _create(name, pretrained=True, num_classes=num_classes)
    model = _create(name, num_classes=num_classes)
    from timm.models import load_checkpoint

    try:
        load_checkpoint(model, checkpoint, weights_only=True)
    except (RuntimeError, KeyError, OSError, ValueError) as error:
        raise UnsupportedModelError(f"The weights in {checkpoint} do not fit {name}: {error}") from error
    return model


def _create(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> Any:
    import difflib

    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f" Did you mean {', '.join(near)}?" if near else ' `timm.list_models("*part*")` finds names.'
        raise UnsupportedModelError(f"timm has no architecture named {name!r}.{hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{name} could not be made with pretrained weights: {error}\nPass --checkpoint FILE if you have them."
        ) from error


def _photo_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not found:
            raise ImageError(f"The folder {path} holds no photos ({', '.join(sorted(_SUFFIXES))}).")
        yield from found


def _unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each photo by its stem, and where several share one, by its folder too or at last by a number."""
    shared = Counter(file.stem for file in files)
    names = {f: f.stem if shared[f.stem] == 1 else f"{f.resolve().parent.name}-{f.stem}" for f in files}
    again = Counter(names.values())
    return {f: n if again[n] == 1 else f"{i}-{n}" for i, (f, n) in enumerate(names.items())}


def _readable(file: Path) -> Any:
    from camhook.images import load_photo

    return load_photo(file)

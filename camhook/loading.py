"""What a command line names: models, with the weights of a file or their own, and photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from camhook.errors import ImageError, UnsupportedModelError

__all__ = ["create", "load_model", "photo_files", "unique_names", "unknown_architecture"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def load_model(name: str, checkpoint: str | None, num_classes: int | None) -> nn.Module:
    """Make a timm model with its pretrained weights, or with those of a file.

    Raises
    ------
    UnsupportedModelError
        If there is no such model, or no such weights for it.
    """
    if name == "demo":
        if checkpoint or num_classes:
            raise UnsupportedModelError(
                "The demo model has its own weights: --checkpoint and --num-classes do not go with it."
            )
        from camhook.demo import demo_model

        return demo_model()
    if checkpoint is None:
        return create(name, pretrained=True, num_classes=num_classes)
    model = create(name, num_classes=num_classes)
    from timm.models import load_checkpoint

    try:
        load_checkpoint(model, checkpoint, weights_only=True)
    except (RuntimeError, KeyError, OSError, ValueError) as error:
        raise UnsupportedModelError(f"The weights in {checkpoint} do not fit {name}: {error}") from error
    return model


def create(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> nn.Module:
    """Make a timm model.

    Raises
    ------
    UnsupportedModelError
        If timm has none of that name, or cannot make it.
    """
    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if ":" not in name and not timm.is_model(name):
        raise unknown_architecture(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        made, advice = (
            ("with pretrained weights", "\nPass --checkpoint FILE if you have them.") if pretrained else ("", "")
        )
        raise UnsupportedModelError(f"{name} could not be made{' ' * bool(made)}{made}: {error}{advice}") from error
    return model


def unknown_architecture(name: str) -> UnsupportedModelError:
    """Return the error that says what the name is close to."""
    import difflib

    import timm

    near = difflib.get_close_matches(name, timm.list_models(), n=5)
    hint = f" Did you mean {', '.join(near)}?" if near else ' `timm.list_models("*part*")` finds names.'
    return UnsupportedModelError(f"timm has no architecture named {name!r}.{hint}")


def photo_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield these files, and all photos in these folders.

    Raises
    ------
    ImageError
        If a folder holds none.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not found:
            raise ImageError(f"The folder {path} holds no photos ({', '.join(sorted(_SUFFIXES))}).")
        yield from found


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each photo by its stem; where several share one, by folder and kind too, and at last by a number."""
    names = {file: file.stem for file in files}
    for form in ("{folder}-{stem}", "{folder}-{stem}-{kind}", "{number}-{stem}"):
        shared = Counter(names.values())
        for number, (file, name) in enumerate(list(names.items())):
            if shared[name] > 1:
                parts = {"folder": file.resolve().parent.name, "stem": file.stem, "kind": file.suffix[1:]}
                names[file] = form.format(number=number, **parts)
    return names

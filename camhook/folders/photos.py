"""The photos to explain: where they are, what their files are called, and whether they are what they were."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camhook.errors import OutputError
from camhook.images.photos import photo_files

__all__ = ["Photo", "list_photos", "stamp"]


@dataclass(frozen=True)
class Photo:
    """A photo's file, and the name that all files made of it start with."""

    path: Path
    name: str


def list_photos(paths: Sequence[Path]) -> list[Photo]:
    """Return these files and all in these folders, each once, under names that no two share.

    Raises
    ------
    ImageError
        If a folder holds none.
    OutputError
        If names cannot be told apart.
    """
    files = list(dict.fromkeys(photo_files(paths)))
    photos = [Photo(path, name) for path, name in unique_names(files).items()]
    taken: dict[str, Path] = {}
    for photo in photos:
        if (other := taken.setdefault(photo.name, photo.path)) != photo.path:
            raise OutputError(f"{other} and {photo.path} would both be written as {photo.name}. Rename one.")
    return photos


def stamp(path: Path) -> dict[str, Any]:
    """Say which photo it is: its path, size in bytes and time of change; nothing where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return {}
    return {"path": os.path.abspath(path), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


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

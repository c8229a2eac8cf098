"""The photos to explain: where they are, what their files are called, and whether they are what they were."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camhook.errors import OutputError
from camhook.images.loading import photo_files, unique_names

__all__ = ["Photo", "list_photos", "stamp", "with_stamp"]


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


def with_stamp(photo: Photo) -> tuple[Path, dict[str, Any]]:
    """Return a photo's path and its stamp from before it is read."""
    return photo.path, stamp(photo.path)


def stamp(path: Path) -> dict[str, Any]:
    """Say which photo it is: its path, size in bytes and time of change; nothing where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return {}
    return {"path": os.path.abspath(path), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}

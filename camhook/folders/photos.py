"""Photos of a folder run: their names, the settings they are explained with, which are done and which were skipped."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camhook.adapters.libraries import model_name
from camhook.cam import CAM
from camhook.distributed import Ranks
from camhook.errors import OutputError
from camhook.files import SOFTWARE, check_overwrite, write_bytes, written_by_camhook
from camhook.fingerprints import fingerprint
from camhook.images.loading import photo_files, unique_names

__all__ = [
    "Photo",
    "Selection",
    "SkippedPhotos",
    "is_done",
    "list_photos",
    "remove_partial_files",
    "settings_of",
    "stamp",
    "with_stamp",
]

_HEADING = f"# {SOFTWARE}: photos that were skipped, and why. The same command tries them again."
_SHOWN = 20  # skipped photos that are listed on the screen
_PARTIAL = re.compile(r"\.(.+)\.(?:npz|json|\d+-[a-z0-9-]*\.png)\.\d+\.part")


@dataclass(frozen=True)
class Photo:
    """A photo's file, and the name that its output files start with."""

    path: Path
    name: str


@dataclass(frozen=True)
class Selection:
    """Which maps are computed for every photo.

    Attributes
    ----------
    targets : sequence of int or str, optional
        Classes, by index or name; default the predicted class.
    topk : int, optional
        Instead of targets: this many classes with the highest logits.
    rivals : bool
        Contrast each class with the ten others of the highest logits.
    """

    targets: Sequence[int | str] | None = None
    topk: int | None = None
    rivals: bool = False

    def arguments(self, images: int) -> dict[str, Any]:
        """Return the arguments of a call ``cam(images, **arguments)`` with this many images."""
        target = None if self.targets is None else [list(self.targets)] * images
        return {"target": target, "topk": self.topk, "contrast": "rivals" if self.rivals else None}


def list_photos(paths: Sequence[Path]) -> list[Photo]:
    """Return the given files and those in the given folders, each once, under unique names.

    Raises
    ------
    ImageError
        If a folder holds no photos.
    OutputError
        If two photos would get the same name.
    """
    files = list(dict.fromkeys(photo_files(paths)))
    photos = [Photo(path, name) for path, name in unique_names(files).items()]
    taken: dict[str, Path] = {}
    for photo in photos:
        if (other := taken.setdefault(photo.name, photo.path)) != photo.path:
            raise OutputError(f"{other} and {photo.path} would both be written as {photo.name}. Rename one.")
    return photos


def stamp(path: Path) -> dict[str, Any]:
    """Return what identifies a photo: path, size in bytes, time of modification; empty if the file is not there."""
    try:
        found = path.stat()
    except OSError:
        return {}
    return {"path": os.path.abspath(path), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def with_stamp(photo: Photo) -> tuple[Path, dict[str, Any]]:
    """Return a photo's path, and its stamp from before it is read; for an `ImageReader`."""
    return photo.path, stamp(photo.path)


def settings_of(cam: CAM, selection: Selection, *, probe: Path | None, overlays: bool) -> dict[str, Any]:
    """Return what a photo's output files depend on besides the photo, as it reads after a round trip through JSON."""
    assert cam.preprocessing is not None
    settings = {
        "model": model_name(cam.model),
        "weights": fingerprint(cam.model),
        "preprocessing": cam.preprocessing.config,
        "targets": selection.targets,
        "topk": selection.topk,
        "rivals": selection.rivals,
        "probe": None if probe is None else f"sha256:{hashlib.sha256(probe.read_bytes()).hexdigest()[:32]}",
        "overlays": overlays,
    }
    compared: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return compared


def is_done(directory: Path, photo: Photo, settings: dict[str, Any]) -> bool:
    """Return whether a manifest of these settings and of the unchanged photo is there, and all files that it names."""
    try:
        found = json.loads((directory / f"{photo.name}.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict) or found.get("software") != SOFTWARE or found.get("settings") != settings:
        return False
    return found.get("photo") == stamp(photo.path) and all((directory / file).is_file() for file in found["files"])


def remove_partial_files(directory: Path, photos: Sequence[Photo]) -> None:
    """Remove the half-written files that a killed run left for these photos."""
    names = {photo.name for photo in photos}
    for file in directory.glob(".*.part"):
        if (match := _PARTIAL.fullmatch(file.name)) and match[1] in names:
            file.unlink(missing_ok=True)


class SkippedPhotos:
    """The photos of one rank that could not be explained, and the file in the output directory that lists them.

    The file is called skipped.txt, or skipped-RANK-of-WORLD.txt with several ranks; no photo's output ends in .txt.

    Raises
    ------
    OutputError
        If there is a file of that name that camhook did not write.
    """

    def __init__(self, directory: Path, ranks: Ranks, *, overwrite: bool = False) -> None:
        part = f"-{ranks.rank}-of-{ranks.world}" if ranks.world > 1 else ""
        self.file = directory / f"skipped{part}.txt"
        self.reasons: list[str] = []
        for old in self._outdated(directory, ranks):
            old.unlink(missing_ok=True)
        check_overwrite([self.file], overwrite=overwrite, kind=_HEADING)

    def add(self, photo: Photo, reason: str) -> None:
        """Note why a photo could not be explained."""
        self.reasons.append(reason if str(photo.path) in reason else f"{photo.path}: {reason}")

    def __str__(self) -> str:
        more = len(self.reasons) - _SHOWN
        shown = self.reasons[:_SHOWN] + [f"and {more} more"] * (more > 0)
        return "\n  ".join(["skipped:", *shown]) + f"\nThey are listed in {self.file}."

    def write(self) -> None:
        """Write the list unless it is empty."""
        if self.reasons:
            text = "\n".join([_HEADING, *self.reasons]) + "\n"
            write_bytes(self.file, text.encode("utf-8", "backslashreplace"))

    def _outdated(self, directory: Path, ranks: Ranks) -> Iterator[Path]:
        """Yield this rank's list of an earlier run; for the first rank also the lists of another number of ranks."""
        for file in directory.glob("skipped*.txt"):
            of_these = file.name.endswith(f"-of-{ranks.world}.txt") if ranks.world > 1 else file == self.file
            if (file == self.file or (ranks.rank == 0 and not of_these)) and written_by_camhook(file, kind=_HEADING):
                yield file

"""What is done and by which settings, as the manifests say; and a list of the photos that could not be explained."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from camhook.adapters.libraries import model_name
from camhook.cam import CAM
from camhook.distributed import Ranks
from camhook.files import SOFTWARE, check_overwrite, write_bytes, written_by_camhook
from camhook.fingerprints import fingerprint
from camhook.folders.photos import Photo, stamp

__all__ = ["Skipped", "is_done", "remove_remains", "settings_of"]

_HEADING = f"# {SOFTWARE}: photos that were skipped, and why. The same command tries them again."
_SHOWN = 20  # of the skipped, on the screen
_REMAINS = re.compile(r"\.(.+)\.(?:npz|json|\d+-[a-z0-9-]*\.png)\.\d+\.part")


def settings_of(
    cam: CAM, *, targets: Sequence[int | str] | None, topk: int | None, rivals: bool, probe: Path | None, overlays: bool
) -> dict[str, Any]:
    """Return what a photo's files depend on besides the photo, in JSON's own types, so that it compares."""
    assert cam.preprocessing is not None
    settings = {
        "model": model_name(cam.model),
        "weights": fingerprint(cam.model),
        "preprocessing": cam.preprocessing.config,
        "targets": targets,
        "topk": topk,
        "rivals": rivals,
        "probe": None if probe is None else f"sha256:{hashlib.sha256(probe.read_bytes()).hexdigest()[:32]}",
        "overlays": overlays,
    }
    compared: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return compared


def is_done(directory: Path, photo: Photo, settings: dict[str, Any]) -> bool:
    """Tell whether a photo's manifest is there, of these settings and of the photo as it is now, with its files."""
    try:
        found = json.loads((directory / f"{photo.name}.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict) or found.get("software") != SOFTWARE or found.get("settings") != settings:
        return False
    return found.get("photo") == stamp(photo.path) and all((directory / file).is_file() for file in found["files"])


def remove_remains(directory: Path, photos: Sequence[Photo]) -> None:
    """Remove the half-written files that a killed run left for these photos."""
    names = {photo.name for photo in photos}
    for file in directory.glob(".*.part"):
        if (match := _REMAINS.fullmatch(file.name)) and match[1] in names:
            file.unlink(missing_ok=True)


class Skipped:
    """The photos of one share that could not be explained, and the file in the output directory that lists them.

    Its name ends in .txt, as no photo's files do, and each rank has its own.

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
        """Write the list, if there is anything on it."""
        if self.reasons:
            text = "\n".join([_HEADING, *self.reasons]) + "\n"
            write_bytes(self.file, text.encode("utf-8", "backslashreplace"))

    def _outdated(self, directory: Path, ranks: Ranks) -> Iterator[Path]:
        """Yield this rank's list of an earlier run; the first rank also clears up after another number of ranks."""
        for file in directory.glob("skipped*.txt"):
            of_these = file.name.endswith(f"-of-{ranks.world}.txt") if ranks.world > 1 else file == self.file
            if (file == self.file or (ranks.rank == 0 and not of_these)) and written_by_camhook(file, kind=_HEADING):
                yield file

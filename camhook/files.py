"""Files that are there whole or not at all, and never in the place of a stranger's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from PIL import Image, PngImagePlugin

from camhook.errors import OutputError

__all__ = ["SOFTWARE", "is_our_png", "refuse_strangers", "replacing_file", "save_png", "write_bytes"]

SOFTWARE = "camhook"


@contextlib.contextmanager
def replacing_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which then takes the file's place in one step: the old one or the new, never a part.

    Parameters
    ----------
    durable
        Have the disk hold what was written before it takes the place, also after a power cut. The path to write to is
        the same in every run then, so that what a killed one left is written over by the next.

    Raises
    ------
    OutputError
        If the path cannot be written to.
    """
    partial = path.with_name(f".{path.name}.part" if durable else f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        if durable:
            _to_disk(partial)
        os.replace(partial, path)
        if durable:
            _to_disk(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}. Choose another path, or make room.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step.

    Raises
    ------
    OutputError
        If the path cannot be written to.
    """
    with replacing_file(path) as partial:
        partial.write_bytes(content)


def save_png(picture: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a picture that names camhook as its maker.

    Raises
    ------
    OutputError
        If a file is there that camhook did not write, or the path cannot be written to.
    """
    path = Path(path)
    refuse_strangers([path], is_our_png, overwrite=overwrite)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"{SOFTWARE} {version('camhook')}")
    with replacing_file(path) as partial:
        picture.save(partial, "PNG", pnginfo=info)


def is_our_png(path: Path) -> bool:
    """Tell whether camhook made a picture."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Software", "")).startswith(SOFTWARE)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False  # whatever it is, it is no picture of camhook's


def refuse_strangers(files: Sequence[Path], is_ours: Callable[[Path], bool], *, overwrite: bool) -> None:
    """Raise `OutputError` if one of the files is there already and camhook did not write it."""
    strangers = [] if overwrite else [file for file in files if file.exists() and not is_ours(file)]
    if strangers:
        raise OutputError(
            f"{strangers[0]} is there already and camhook did not write it. Choose another path, or pass "
            "overwrite=True (--overwrite on the command line)."
        )


def _to_disk(path: Path) -> None:
    """Have the disk hold what was written; Windows cannot be asked for that of a folder."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

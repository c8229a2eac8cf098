"""Atomic file writes; refuses to overwrite files that camhook did not write."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from camhook.errors import CamhookError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HTML_GENERATOR",
    "SOFTWARE",
    "atomic_write",
    "check_overwrite",
    "read_tensors",
    "save_png",
    "write_bytes",
    "write_tensors",
    "written_by_camhook",
]

SOFTWARE = "camhook"
HTML_GENERATOR = f'<meta name="generator" content="{SOFTWARE}">'


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces ``path`` when the block ends.

    Readers see the old file or the new one, never a part. If the block raises, ``path`` stays as it was. The temporary
    file is a hidden neighbour of ``path`` and is removed in either case.

    Parameters
    ----------
    path
        The file to write or replace.
    durable
        Flush the file and its folder to disk (fsync), so that the file also survives a power cut. The temporary path is
        then the same in every run, so that the next run overwrites what a killed one left.

    Raises
    ------
    OutputError
        If the path cannot be written to.
    """
    partial = path.with_name(f".{path.name}.part" if durable else f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        if durable:
            _fsync(partial)
        os.replace(partial, path)
        if durable:
            _fsync(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}. Choose another path, or make room.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises
    ------
    OutputError
        If the path cannot be written to.
    """
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def save_png(picture: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a PNG whose ``Software`` text chunk names camhook.

    Raises
    ------
    OutputError
        If a file is there that camhook did not write, or the path cannot be written to.
    """
    path = Path(path)
    check_overwrite([path], overwrite=overwrite)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"{SOFTWARE} {version('camhook')}")
    with atomic_write(path) as partial:
        picture.save(partial, "PNG", pnginfo=info)


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write a safetensors file atomically: tensors, and facts in types that JSON has.

    Parameters
    ----------
    kind
        Name of the format, which `read_tensors` and `written_by_camhook` compare.

    Raises
    ------
    OutputError
        If the path cannot be written to.
    """
    from safetensors.torch import save

    metadata = {"format": kind, "software": f"{SOFTWARE} {version('camhook')}", "facts": json.dumps(facts)}
    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(Path(path), durable=True) as partial:
        partial.write_bytes(save(values, metadata))


def read_tensors(
    path: str | os.PathLike[str], kind: str, names: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (of these names; default all) and facts that `write_tensors` wrote under that kind.

    Raises
    ------
    CamhookError
        If the file does not exist, is damaged, or is of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            found = [name for name in file.keys() if names is None or name in names]  # noqa: SIM118 (not a mapping)
            tensors = {name: file.get_tensor(name) for name in found}
            facts = json.loads(metadata.get("facts", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CamhookError(
            f"{os.fspath(path)} cannot be read as a {kind}: {error}. Pass a file that camhook wrote."
        ) from error
    if metadata.get("format") != kind or not isinstance(facts, dict):
        given = f"a safetensors file of format {metadata.get('format')!r}"
        raise CamhookError(f"{os.fspath(path)} is {given}, expected {kind!r}. Pass a file that camhook wrote as that.")
    return tensors, facts


def check_overwrite(files: Sequence[Path], *, overwrite: bool, kind: str = "") -> None:
    """Refuse to overwrite files that camhook did not write.

    Parameters
    ----------
    files
        The files about to be written.
    overwrite
        Allow it nevertheless.
    kind
        See `written_by_camhook`.

    Raises
    ------
    OutputError
        If one of the files exists, camhook did not write it, and ``overwrite`` is not set.
    """
    foreign = [file for file in files if not overwrite and file.exists() and not written_by_camhook(file, kind=kind)]
    if foreign:
        raise OutputError(
            f"{foreign[0]} is there already and camhook did not write it. Choose another path, or pass "
            "overwrite=True (--overwrite on the command line)."
        )


def written_by_camhook(path: Path, *, kind: str = "") -> bool:
    """Return whether camhook wrote a file, judging by the mark that each file type carries.

    =====================  ===================================================
    file type              mark
    =====================  ===================================================
    PNG                    text chunk ``Software``
    NPZ                    array ``software``
    PT2                    extra file ``camhook``
    ONNX                   metadata property ``camhook``
    safetensors            metadata ``software``, and ``format`` equals ``kind``
    JSON                   field ``software``
    HTML                   meta element ``generator``
    other text (CSV, TXT)  starts with ``kind``
    =====================  ===================================================

    Parameters
    ----------
    path
        The file. Its type is read from its content, except for ONNX, which is known by its name.
    kind
        What a text file must start with, or the ``format`` of a safetensors file ("" is any). Without it, text other
        than JSON and HTML is never camhook's.

    Returns
    -------
    bool
        False also where there is no file, or one that is broken or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
        if path.suffix == ".onnx":
            return _onnx_mark(path)
        if start.startswith(b"\x89PNG"):
            with Image.open(path) as image:
                return str(image.info.get("Software", "")).startswith(SOFTWARE)
        if start.startswith(b"PK"):
            return _zip_mark(path)
        if start[5:9] == b"\0\0\0{":  # a JSON header after its length in eight bytes
            return _safetensors_mark(path, kind)
        if start.lstrip().startswith(b"{"):
            return bool(json.loads(path.read_bytes())["software"] == SOFTWARE)
        text = start.decode("utf-8", "replace")
        return HTML_GENERATOR in text or (kind != "" and text.startswith(kind))
    except (OSError, EOFError, ValueError, LookupError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False  # broken or unreadable, so nothing that camhook wrote
    except Image.DecompressionBombError:
        return False


def _zip_mark(path: Path) -> bool:
    """Look into the archives of numpy (NPZ) and of torch.export (PT2)."""
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        if any(name.endswith(f"extra/{SOFTWARE}") for name in archive.namelist()):
            return True
        with archive.open("software.npy") as member:
            return str(np.lib.format.read_array(member)) == SOFTWARE


def _safetensors_mark(path: Path, kind: str) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        return False
    return metadata.get("software", "").startswith(SOFTWARE) and kind in ("", metadata.get("format"))


def _onnx_mark(path: Path) -> bool:
    """Find the metadata near the end of the file: parsing a model of gigabytes for it would take seconds."""
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(-min(stream.tell(), 2**20), os.SEEK_END)
        return f'"software": "{SOFTWARE}"'.encode() in stream.read()


def _fsync(path: Path) -> None:
    """Flush a file or folder to disk; Windows cannot do that for a folder."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

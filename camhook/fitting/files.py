"""Files of named tensors that are there whole or not at all: safetensors, so nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from camhook.errors import CamhookError, OutputError

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors, and facts that JSON can hold; whoever looks, at any moment, finds the old file or the new one.

    Raises
    ------
    OutputError
        The path cannot be written to.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.part")  # what a killed run left is written over by the next
    metadata = {"format": kind, "software": f"camhook {version('camhook')}", "facts": json.dumps(facts)}
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, metadata)
        _to_disk(partial)
        os.replace(partial, target)
        _to_disk(target.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"{target} cannot be written: {error}. Choose another path, or make room.") from error


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts that `write_tensors` wrote under that kind.

    Raises
    ------
    CamhookError
        The file is not there, is broken, or is of another kind.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            facts = json.loads(metadata.get("facts", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CamhookError(
            f"{os.fspath(path)} cannot be read as a {kind}: {error}. Pass a file of camhook's."
        ) from error
    if metadata.get("format") != kind or not isinstance(facts, dict):
        found = f"a safetensors file of format {metadata.get('format')!r}"
        raise CamhookError(f"{os.fspath(path)} is {found}, expected {kind!r}. Pass a file that camhook wrote as that.")
    return tensors, facts


def _to_disk(path: Path) -> None:
    """Have the disk hold what was written, also after a power cut; Windows cannot be asked for that of a folder."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

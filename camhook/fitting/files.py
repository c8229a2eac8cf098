"""Files of named tensors that are there whole or not at all: safetensors, so nothing in them is ever executed."""

from __future__ import annotations

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
from camhook.files import atomic_write

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
    metadata = {"format": kind, "software": f"camhook {version('camhook')}", "facts": json.dumps(facts)}
    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with atomic_write(Path(path), durable=True) as partial:
            partial.touch()
            mode = partial.stat().st_mode  # by the user's own umask; safetensors would let nobody else read it
            save_file(values, partial, metadata)
            partial.chmod(mode)
    except SafetensorError as error:
        raise OutputError(f"{os.fspath(path)} cannot be written: {error}. Choose another path.") from error


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

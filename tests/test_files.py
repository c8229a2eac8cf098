"""Which files camhook recognises as its own, by type, and that others are not overwritten."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from camhook.errors import OutputError
from camhook.files import HTML_GENERATOR, check_overwrite, save_png, write_bytes, written_by_camhook

KIND = "method,metric"


def write(path: Path, *, software: str) -> None:
    """Write a file of the type that the suffix says, by this maker."""
    if path.suffix == ".png":
        save_png(Image.new("RGB", (4, 4)), path)
        if software != "camhook":
            Image.new("RGB", (4, 4)).save(path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, maps=np.zeros(3), software=np.array(software))
    elif path.suffix == ".pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/extra/{software}", "{}")
    elif path.suffix == ".onnx":
        path.write_bytes(b"\x08\x0a" + bytes(2**20) + json.dumps({"software": software}).encode() + b"\x42\x00")
    elif path.suffix == ".safetensors":
        save_file({"a": torch.zeros(1)}, path, {"software": f"{software} 1.0", "format": KIND})
    elif path.suffix == ".json":
        path.write_text(json.dumps({"rows": [0.5], "software": software}))
    elif path.suffix == ".html":
        path.write_text("<!doctype html>\n<head>" + HTML_GENERATOR.replace("camhook", software))
    else:
        path.write_text(f"{KIND if software == 'camhook' else software},value\n1,2,3\n")


SUFFIXES = [".png", ".npz", ".pt2", ".onnx", ".safetensors", ".json", ".html", ".csv"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_type_carries_its_makers_mark(tmp_path: Path, suffix: str) -> None:
    own, foreign = tmp_path / f"own{suffix}", tmp_path / f"foreign{suffix}"
    write(own, software="camhook")
    write(foreign, software="another")
    assert written_by_camhook(own, kind=KIND)
    assert not written_by_camhook(foreign, kind=KIND)
    check_overwrite([own], overwrite=False, kind=KIND)
    check_overwrite([own, foreign], overwrite=True, kind=KIND)
    with pytest.raises(OutputError, match=rf"foreign{suffix} is there already .*--overwrite"):
        check_overwrite([own, foreign], overwrite=False, kind=KIND)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0, 3, 12])
def test_a_file_cut_short_is_nobodys(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"own{suffix}"
    write(path, software="camhook")
    path.write_bytes(path.read_bytes()[:keep])
    assert not written_by_camhook(path, kind=KIND)


def test_one_kind_is_told_from_another(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".csv"):
        path = tmp_path / f"own{suffix}"
        write(path, software="camhook")
        assert not written_by_camhook(path, kind="another kind")
    assert written_by_camhook(tmp_path / "own.safetensors")
    assert not written_by_camhook(tmp_path / "own.csv")


def test_what_is_no_file_is_nobodys(tmp_path: Path) -> None:
    assert not written_by_camhook(tmp_path)
    assert not written_by_camhook(tmp_path / "absent.json")
    write_bytes(tmp_path / "a.json", b'{"x": {"software": "camhook"}}')
    assert not written_by_camhook(tmp_path / "a.json")

"""The wheel: every module and data file of the package is in it, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    source = tmp_path_factory.mktemp("source")
    for name in ("camhook", "adapters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = (source / "dist").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_module_and_data_file_is_in_the_wheel(names: set[str]) -> None:
    modules = {f"camhook/{file.relative_to(ROOT / 'camhook')}" for file in (ROOT / "camhook").rglob("*.py")}
    modules |= {f"camhook/adapters/{file.relative_to(ROOT / 'adapters')}" for file in (ROOT / "adapters").rglob("*.py")}
    data = {"camhook/py.typed", "camhook/comparison/templates/report.html"}
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == modules | data

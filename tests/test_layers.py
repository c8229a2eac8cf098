"""The import contracts of ``pyproject.toml``: the package keeps them, and each kind of forbidden import breaks one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in a folder against the contracts in that folder's ``pyproject.toml``."""
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, with its adapters as they are installed: below it."""
    shutil.copytree(ROOT / "camhook", tmp_path / "camhook", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold() -> None:
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("errors.py", "import camhook.cam", "Rooms import from floors below"),
        ("adapters/base.py", "import camhook.engine.points", "Rooms import from floors below"),
        ("metrics/__init__.py", "import camhook.results", "Rooms import from floors below"),
        ("unplaced.py", "", "Rooms import from floors below"),
        ("engine/points.py", "import camhook.engine.reader", "Within engine"),
        ("decompose/maps.py", "import camhook.decompose.decomposition", "Within decompose"),
        ("images/geometry.py", "import camhook.images.preprocessing", "No cycles, within any room"),
        ("results/__init__.py", "from camhook import wrap", "Only the command line imports what users import"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(file: str, line: str, broken: str, copy: Path) -> None:
    with (copy / "camhook" / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    found = lint(copy)
    assert found.returncode == 1, found.stdout + found.stderr
    assert f"{broken} BROKEN" in found.stdout


def test_no_file_is_longer_than_300_lines() -> None:
    files = [*(ROOT / "camhook").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    assert len(files) > 50
    longer = {str(file.relative_to(ROOT)): n for file in files if (n := len(file.read_text().splitlines())) > 300}
    assert not longer

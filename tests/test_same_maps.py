"""The comparison of maps before and after a change: what is the same passes, and whatever is not is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

from same_maps import DOUBLE, Arrays, compare, explained, listed

NAME = "test_resnet"


@pytest.fixture(scope="module")
def run() -> dict[str, Arrays]:
    """A run of one architecture in both precisions."""
    return {name: explained(name) for name in (NAME, NAME + DOUBLE)}


def compared(run: dict[str, Arrays], other: dict[str, Arrays], folder: Path) -> int:
    files = folder / "before.npz", folder / "after.npz"
    for file, each in zip(files, (run, other), strict=True):
        arrays: dict[str, Any] = {
            f"{name}/{part}": array for name, parts in each.items() for part, array in parts.items()
        }
        np.savez(file, **arrays)
    return compare(*files, tolerance=1e-6, float32_tolerance=1e-3)


def test_a_second_run_is_the_same(run: dict[str, Arrays], tmp_path: Path) -> None:
    assert run[NAME]["all/maps"].dtype == np.float32
    assert run[NAME + DOUBLE]["all/maps"].dtype == np.float64
    assert compared(run, {name: explained(name) for name in run}, tmp_path) == 0


@pytest.mark.parametrize("part", ["few/maps", "all/maps", "few/offset", "all/offset"])
def test_a_float64_value_that_moves_by_more_than_rounding_is_found(
    part: str, run: dict[str, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = run[NAME + DOUBLE][part].copy()
    moved[0, 0] += 1e-5 * np.abs(run[NAME + DOUBLE][f"{part.partition('/')[0]}/maps"]).max()
    other = {NAME: run[NAME], NAME + DOUBLE: run[NAME + DOUBLE] | {part: moved}}
    assert compared(run, other, tmp_path) == 1
    assert "float64: 1 architectures, 1 beyond 1e-06" in capsys.readouterr().out


def test_what_is_missing_or_failed_is_counted(
    run: dict[str, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(run, {NAME: {"error": np.array("LayoutError: nothing")}}, tmp_path) == 2
    said = capsys.readouterr().out
    assert "is missing after" in said
    assert "failed after: LayoutError: nothing" in said


def test_an_architecture_that_cannot_be_made_is_an_error_in_text() -> None:
    assert str(explained("no_such_model")["error"]) == "AssertionError: no_such_model runs on no input"


def test_the_lists_are_read_from_the_sweeps_test() -> None:
    assert len(listed("tiny")) == 25
    assert len(set(listed("swept"))) >= 200

"""How many Python calls within camhook one ``cam(photo)`` takes: limits, so that the way of one image stays short."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

from calls import counted, measured


def test_calls_elsewhere_are_not_counted() -> None:
    found = counted("none", lambda: Path("a").resolve())
    assert (found.calls, found.files, found.changes) == (0, 0, 0)


@pytest.mark.parametrize(("name", "calls", "changes"), [("test_resnet", 130, 60), ("test_vit", 5_000, None)])
def test_one_call_stays_within_its_limits(name: str, calls: int, changes: int | None) -> None:
    found = measured(name)
    often = "; ".join(f"{count} x {function} in {file}" for file, function, count in found.functions[:5])
    assert 10 < found.calls <= calls, often  # fewer than ten would mean that the package's frames were not seen
    assert changes is None or found.changes <= changes, found.changes

"""The example of an adapter of one's own: it runs, and what it claims holds."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import camhook
from camhook.adapters import base

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_adapter.py"


def test_the_example_runs_and_its_map_adds_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    before, after = said.split("With one:")
    assert "no place was found" in before
    assert "grid 6 x 9, 4 prefix tokens" in after
    assert "adapter 'register-net'" in after
    missed = [float(number) for number in re.findall(r"by (\S+) at most", after)]
    assert len(missed) == 2
    assert max(missed) < 1e-5


def test_another_number_of_registers_is_refused() -> None:
    example: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    layout = camhook.Layout("NLC", 2, (example["STRIDE"], example["STRIDE"]))
    adapter = replace(example["REGISTER_NET"], layouts=lambda model, shape: [layout])
    with pytest.raises(camhook.UnsupportedModelError):
        camhook.wrap(example["RegisterNet"](), adapter=adapter, input_size=example["SIZE"])

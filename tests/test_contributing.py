"""`CONTRIBUTING.md` names files, classes and floors that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def located(path: str) -> Path:
    """A path as the text writes it: from the repository's root, or from the package's."""
    return next((root / path for root in (ROOT, ROOT / "camhook") if (root / path).exists()), ROOT / path)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./]+(?:\.py|/))`", TEXT))))
def test_every_file_and_room_is_there(path: str) -> None:
    assert located(path).exists()


def test_every_noun_is_a_class_where_the_table_says() -> None:
    nouns = re.findall(r"^\| `(\w+)` \| `([\w./]+\.py)` \|", TEXT, re.MULTILINE)
    assert len(nouns) == 8
    for noun, path in nouns:
        assert re.search(rf"^class {noun}\b", located(path).read_text(), re.MULTILINE), noun


def test_the_floors_are_those_of_the_contract() -> None:
    reading: Any = pytest.importorskip("importlinter.api")
    (rooms,) = (
        each for each in reading.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
        if each.get("containers") == ["camhook"]
    )  # fmt: skip
    expected = [
        {name for name in re.split(r"[|:\s]+", layer) if name and not name.startswith("(")}
        for layer in reversed(rooms["layers"])
    ]
    found: list[set[str]] = [set() for _ in expected]
    for floor, cell in re.findall(r"^\| (\d) \| (.*?) \|", TEXT, re.MULTILINE):
        found[int(floor) - 1] |= {name.strip("/").removesuffix(".py") for name in re.findall(r"`([\w./]+)`", cell)}
    assert found == expected

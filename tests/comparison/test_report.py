"""The page: complete, self-contained, safe to open, and drawn by a browser as meant."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_comparison import colours, squares

from camhook.comparison import Comparison, compare
from camhook.comparison.methods import METHODS
from camhook.comparison.report import page
from camhook.metrics import METRICS


@pytest.fixture(scope="module")
def found() -> Comparison:
    images, boxes, labels = squares(3)
    named = ["cam", "layer_grad_cam", "saliency", "lrp", "feature_ablation"]
    torch.set_num_threads(1)
    return compare(colours(), images, methods=named, boxes=boxes, labels=labels, steps=8, cells=6)


class Reader(HTMLParser):
    """Notes tags, texts, and whatever a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_needs_nothing_from_elsewhere(found: Comparison) -> None:
    text = page(found)
    read = Reader(text)
    assert read.open == []  # every tag is closed, in order
    assert all(source.startswith("data:image/jpeg;base64,") for source in read.loaded)
    assert len(read.loaded) == 3 * (1 + len(found.methods))
    assert not {"script", "link", "iframe"} & set(read.tags)
    assert "url(" not in text
    assert "@import" not in text


def test_says_all_there_is_to_say(found: Comparison) -> None:
    text = " ".join(Reader(page(found)).texts)
    for name in found.methods:
        assert METHODS[name].title in text
        assert METHODS[name].definition in text
        assert METHODS[name].source in text
    for name in found.metrics:
        assert METRICS[name].definition in text
        assert METRICS[name].source in text
    assert found.failures["lrp"] in text
    assert f"{found.row('cam', 'deletion').mean:.3g}" in text
    assert f"captum {found.versions['captum']}" in text
    assert "n = 3" in text
    assert "black pixels" in text
    for label in found.classes:
        assert label in text


def test_memory_is_shown_where_it_was_measured(found: Comparison) -> None:
    assert "peak GPU MB" not in page(found)  # on a CPU
    measured = replace(found, memory={**found.memory, "cam": 123_456_789})
    text = Reader(page(measured)).texts
    assert "peak GPU MB" in text
    assert "123" in text


def test_names_cannot_break_the_page(found: Comparison) -> None:
    wild = replace(found, images=("<script>alert(1)</script>", 'a"b', "&amp;"), classes=("<b>", "c", "d"))
    read = Reader(page(wild))
    assert "script" not in read.tags
    assert "<script>alert(1)</script>" in read.texts[-1] or any("<script>alert(1)" in text for text in read.texts)


def browser() -> str | None:
    """A Chromium, named by the environment, installed, or playwright's."""
    named = os.environ.get("CAMHOOK_CHROMIUM")
    installed = (
        shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    )
    homes = [Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache/ms-playwright"))]
    theirs = (
        str(path)
        for home in homes
        for path in sorted(home.glob("chromium*/chrome-linux*/*"))
        if path.name in ("chrome", "headless_shell")
    )
    return named or next((path for path in installed if path), None) or next(theirs, None)


@pytest.mark.skipif(browser() is None, reason="no Chromium; set CAMHOOK_CHROMIUM to one")
def test_a_browser_draws_it_offline(found: Comparison, tmp_path: Path) -> None:
    (file,) = found.save(tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    command = [browser() or "", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--log-level=3"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    size = (1300, 2600)
    shooting = [f"--screenshot={shot}", f"--window-size={size[0]},{size[1]}", Path(file).as_uri()]
    subprocess.run([*command, *shooting], check=True, timeout=120, capture_output=True)
    with Image.open(shot) as picture:
        assert picture.size == size
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (pixels[:8] > 250).all()  # paper at the top
    ink = (pixels.max(2) < 90).any(1)
    assert ink[:600].sum() > 100  # a table comes first
    colourful = (pixels.max(2) - pixels.min(2) > 60).sum(1) > 100
    assert colourful.sum() > 300  # then a strip of pictures for each image
    dumped = subprocess.run([*command, "--dump-dom", Path(file).as_uri()], check=True, timeout=120, capture_output=True)
    assert "How alike the maps are" in dumped.stdout.decode()

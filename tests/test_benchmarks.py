"""The speed benchmark: statistics, tables, the README's table, and the harness itself on a tiny model."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import speed
from speed_table import MARKERS, compact, into_readme, quartiles, summarised, table
from speed_timing import Row, try_out


def row(tool: str, classes: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    base = {"model": "net", "batch_size": 8, "tool": tool, "classes": classes, "scaled": False, "cannot": ""}
    return summarised({**base, "seconds": seconds, "plain": [0.5] * len(seconds), **more})


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    """A report as it comes back from its JSON file."""
    made = {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"device_name": "A CPU", "threads": 1, "cores": 2, "ram_gib": 7.9},
        "versions": {"python": "3.11", "torch": "2.9"},
        "results": [
            row("plain forward", "one", [0.5, 0.5]),
            row("camhook", "one", [0.5, 0.51, 0.52]),
            row("camhook", "ten", [0.6]),
            row("camhook", "all", [1.0]),
            row("slow peer", "one", [1.5]),
            row("slow peer", "ten", [15.0]),
            row("slow peer", "all", [1500.0], scaled=True),
            *(row("no peer", classes, [], cannot="no GAP") for classes in ("one", "ten", "all")),
        ],
        "memory": [
            {"model": "net", "batch_size": 8, "tool": "camhook", "classes": "one", "cannot": ""}
            | {"peak_mib": 12.0, "maps_mib": 2.0, "ratio": 1.25}
        ],
    }
    file = tmp_path / "report.json"
    file.write_text(json.dumps(made))
    read: dict[str, Any] = json.loads(file.read_text())
    return read


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_quartiles_are_numpys(count: int) -> None:
    values = [random.Random(count).random() for _ in range(count)]
    assert quartiles(values) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))


def test_a_ratio_is_of_pairs_not_of_medians() -> None:
    found = summarised({"seconds": [1.0, 4.0, 9.0], "plain": [1.0, 1.0, 3.0], "cannot": ""})
    assert (found["ratio"], found["pairs"], found["ratio_quartiles"]) == (3.0, 3, [2.0, 3.5])
    assert (found["median_seconds"], found["median_plain_seconds"]) == (4.0, 1.0)


def test_scaling_to_all_classes_counts_what_is_shared_once() -> None:
    ten = Row("peer", "ten", first=[1.0], seconds=[1.9], plain=[0.5])  # 0.1 for each class after the first
    assert ten.scaled_to(1000).seconds == pytest.approx([1.0 + 99.9])
    assert ten.scaled_to(1000).scaled


def test_the_table_has_a_line_for_every_row(report: dict[str, Any]) -> None:
    text = table(report)
    assert "| net | 8 | camhook | one | 1.02 | 1.01 to 1.03 | 0.51 | 0.5 | 3 |" in text
    assert "| net | 8 | slow peer | all | 3000 (scaled) |" in text
    assert text.count("cannot: no GAP") == 3
    assert "| net | 8 | camhook | one | 12.0 | 2.0 | 1.25 |" in text


def test_the_compact_table_is_tools_by_models(report: dict[str, Any]) -> None:
    text = compact(report)
    assert "| camhook | 1.02 / 1.20 / 2.00 |" in text
    assert "| slow peer | 3.00 / 30.0 / ~3000 |" in text
    assert "| no peer | - |" in text
    assert "| plain forward, ms | 500 |" in text
    assert "A CPU, 1 of 2 cores, 8 GiB; python 3.11, torch 2.9; 2026-01-02" in text


def test_the_readme_keeps_all_but_what_is_between_the_markers() -> None:
    start, end = MARKERS
    once = into_readme(f"before\n{start}\nold\n{end}\nafter\n", "new \\1")
    assert once == f"before\n{start}\nnew \\1\n{end}\nafter\n"
    assert into_readme(once, "new \\1") == once


@pytest.mark.parametrize("text", ["", MARKERS[0], f"{MARKERS[1]} {MARKERS[0]}", f"{MARKERS[0]}{MARKERS[1]}" * 2])
def test_a_readme_without_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected once each"):
        into_readme(text, "new")


def smoke(tmp_path: Path, *rows: str) -> dict[tuple[str, str], dict[str, Any]]:
    file = tmp_path / "speed.json"
    options = ["--models", "test_resnet", "--pairs", "2", "--batch-sizes", "2", "--threads", "1", "--device", "cpu"]
    speed.main([*options, "--json", str(file), "--rows", *rows])
    found = json.loads(file.read_text())
    assert found["versions"]["camhook"] != "none"
    return {(entry["tool"], entry["classes"]): entry for entry in found["results"]}


def test_the_harness_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = smoke(tmp_path, "plain", "camhook")
    assert set(found) == {("plain forward", "one")} | {("camhook", classes) for classes in ("one", "ten", "all")}
    for entry in found.values():
        assert entry["pairs"] == len(entry["seconds"]) == len(entry["plain"]) == 2
        assert min(entry["seconds"] + entry["plain"]) > 0
    assert "| test_resnet | 2 | camhook | all |" in capsys.readouterr().out


def test_maps_of_peers_point_where_camhooks_do() -> None:
    """What is timed is the same map: on GAP + linear, Grad-CAM is CAM, but for its scale and ReLU."""
    pytest.importorskip("torchcam")
    from peers import Subject, captum_grad_cam, ours, torchcam_cam, torchcam_grad_cam

    subject = Subject.of("test_resnet", 2)
    (mine,) = ours(subject, 1)
    (captum,) = captum_grad_cam(subject, 1)
    positions = mine[0, 0].numel()  # camhook maps average to the score, Captum's add up to it
    assert np.allclose(positions * captum[:, 0].numpy(), mine[:, 0].numpy(), rtol=1e-3, atol=1e-5)
    for peer, shown in ((torchcam_cam, mine[:, 0]), (torchcam_grad_cam, mine[:, 0].relu())):
        (theirs,) = peer(subject, 1)
        shown = shown - shown.amin((1, 2), keepdim=True)
        assert np.allclose(theirs.numpy(), (shown / shown.amax((1, 2), keepdim=True)).numpy(), atol=1e-4)
    assert not any(module._forward_hooks for module in subject.model.modules())


@pytest.mark.parametrize(("peer", "reason"), [("captum_grad_cam", "reshape_transform"), ("torchcam_cam", "GAP")])
def test_a_peer_that_cannot_says_why(peer: str, reason: str) -> None:
    if peer.startswith("torchcam"):
        pytest.importorskip("torchcam")
    import peers

    subject = peers.Subject.of("test_vit", 1)
    assert reason in try_out(getattr(peers, peer)(subject, 1), subject, peer=True)

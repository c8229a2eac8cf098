"""Methods side by side: what is measured, how sure it is, what is reported where a method fails, and bad input."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from side_effects import lived_in, unchanged
from torch import Tensor, nn

import camhook
from camhook import metrics
from camhook.cli.compare import compare as command
from camhook.comparison import Comparison, compare
from camhook.comparison.files import as_csv
from camhook.comparison.measuring import metered
from camhook.comparison.metric_inputs import confident_mosaics
from camhook.comparison.subjects import Subject
from camhook.errors import CamhookError, ImageError, OutputError, TargetError

SIZE = 48
CONTROLS = ("random", "random_coarse", "gaussian")
QUICK = ["cam", "saliency"]


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Colours(nn.Module):
    """Classes 0, 1, 2 are red, green, blue, and 3 is the darkness: it reads the mean of fixed features, surely."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 4)
        self.last = nn.Identity()  # which LRP has no rule for
        with torch.no_grad():
            mixed = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [-1, -1, -1]])
            self.conv.weight.copy_(mixed[:, :, None, None].expand(4, 3, 8, 8) / 64)
            assert self.conv.bias is not None
            self.conv.bias.copy_(torch.tensor([0.0, 0, 0, 1]))
            self.head.weight.copy_(20 * torch.eye(4))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(self.head(self.pool(self.act(self.conv(images))).flatten(1)))
        return result


CONFIG = {"input_size": (3, SIZE, SIZE), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}


def colours() -> camhook.CAM:
    return camhook.wrap(Colours().eval(), data_config=CONFIG)


def squares(count: int = 4) -> tuple[Tensor, list[list[int]], list[int]]:
    """A square of the class's colour on grey, somewhere else in each image; the box it lies in."""
    images, boxes, labels = torch.full((count, 3, SIZE, SIZE), 0.5), [], []
    for i in range(count):
        left, top, colour = 8 * (i % 4), 8 * (3 - i % 4), i % 3
        images[i, :, top : top + 16, left : left + 16] = torch.eye(3)[colour][:, None, None]
        boxes.append([left, top, left + 16, top + 16])
        labels.append(colour)
    return images, boxes, labels


@pytest.fixture(scope="module")
def found() -> Comparison:
    images, boxes, labels = squares()
    named = ["cam", "layer_grad_cam", "integrated_gradients", "deep_lift", "guided_backprop", "lrp", "occlusion"]
    return compare(colours(), images, methods=named, boxes=boxes, labels=labels, steps=12, cells=6)


def test_controls_are_always_in_the_table(found: Comparison) -> None:
    assert found.methods[-3:] == CONTROLS
    assert set(found.methods) | set(found.failures) >= {"cam", "layer_grad_cam", "integrated_gradients", *CONTROLS}
    assert {"insertion", "deletion", "completeness", "pointing_game", "energy_inside"} <= set(found.metrics)


def test_a_method_that_the_model_cannot_take_is_reported_and_the_rest_goes_on(found: Comparison) -> None:
    assert set(found.failures) == {"lrp"}
    assert "no rule defined" in found.failures["lrp"]
    assert "lrp" not in found.methods
    assert "occlusion" in found.methods


def test_a_reused_activation_is_reported_with_captums_reason() -> None:
    class Reused(Colours):
        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.head(self.pool(self.act(self.act(self.conv(images)))).flatten(1))
            return result

    cam = camhook.wrap(Reused().eval(), data_config=CONFIG)
    seen = compare(cam, squares(2)[0], methods=["deep_lift", "cam"], metrics=["complexity"])
    assert "being used more than once in the network" in seen.failures["deep_lift"]
    assert "cam" in seen.methods


def test_values_are_those_of_the_metrics(found: Comparison) -> None:
    images, boxes, labels = squares()
    cam = colours()
    result = cam(images, labels)
    maps = result.upsampled()
    assert isinstance(maps, Tensor)
    black = torch.zeros_like(images)  # mean 0, std 1
    model = cam.model
    expected = {
        "deletion": metrics.deletion(maps[:, 0], images, labels, model, steps=12, baseline=black),
        "insertion": metrics.insertion(maps[:, 0], images, labels, model, steps=12),
        "average_drop": metrics.average_drop(maps[:, 0], images, labels, model, baseline=black),
        "complexity": metrics.complexity(maps[:, 0]),
        "energy_inside": metrics.energy_inside(maps[:, 0], boxes),
        "pointing_game": metrics.pointing_game(maps[:, 0], boxes),
        "completeness": metrics.completeness(result.maps[:, 0], images, labels, model, offset=result.offset[:, 0]),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found.values["cam"][name], values, rtol=1e-5, atol=1e-6)


def test_completeness_is_measured_where_it_is_claimed(found: Comparison) -> None:
    with_value = {name for name in found.methods if "completeness" in found.values[name]}
    assert with_value == {"cam", "integrated_gradients", "deep_lift"}
    assert found.row("cam", "completeness").mean < 1e-4
    assert math.isnan(found.row("occlusion", "completeness").mean)


def test_rows_hold_mean_and_bootstrap_interval(found: Comparison) -> None:
    row = found.row("cam", "deletion")
    values = found.values["cam"]["deletion"].numpy()
    rng = np.random.default_rng(0)
    means = [values[rng.integers(4, size=4)].mean() for _ in range(4000)]
    assert row.n == 4
    assert row.mean == pytest.approx(values.mean())
    assert row.low <= row.mean <= row.high
    spread = values.max() - values.min()
    assert (row.low, row.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1 * spread + 1e-9)
    assert row in found.rows()
    assert found.row("cam", "deletion") == row  # the same every time


def test_one_image_has_no_interval() -> None:
    seen = compare(colours(), squares(1)[0], methods=QUICK, metrics=["complexity"])
    row = seen.row("cam", "complexity")
    assert row.n == 1
    assert math.isnan(row.low)
    assert math.isnan(row.high)
    assert "complexity" in str(seen)


def test_beats_controls_and_best(found: Comparison) -> None:
    assert found.beats_controls("cam", "energy_inside") is True
    assert found.beats_controls("random", "energy_inside") is None
    assert found.beats_controls("occlusion", "completeness") is None
    assert "cam" in found.best("completeness")
    assert set(found.best("insertion")) >= {"cam"} or found.best("insertion")


def test_agreement_is_the_metrics_own(found: Comparison) -> None:
    names, spearman, overlap = found.agreement
    i, j = names.index("cam"), names.index("occlusion")
    maps = [found.maps[name].double() for name in ("cam", "occlusion")]  # 48 pixels: nothing is averaged
    assert spearman[i, j] == pytest.approx(float(metrics.rank_correlation(*maps).mean()))
    assert overlap[j, i] == pytest.approx(float(metrics.top_overlap(*maps).mean()))
    assert torch.equal(spearman, spearman.T)
    assert spearman.diagonal().tolist() == [1.0] * len(names)


def test_notes(found: Comparison) -> None:
    assert any("convergence delta" in note for note in found.notes["deep_lift"])
    assert any("channel first at act" in note or "conv" in note for note in found.notes["layer_grad_cam"])


def test_a_metric_that_fails_is_noted_once() -> None:
    images, _, _ = squares(2)
    options = {"deletion": {"steps": 0}, "insertion": {"steps": 0}}
    seen = compare(colours(), images, methods=["cam"], metrics=["insertion", "deletion", "complexity"], options=options)
    (note,) = seen.notes["cam"]
    assert note.startswith("Could not be measured: insertion, deletion. CamhookError: Found steps=0")
    assert seen.row("cam", "complexity").n == 2


def test_metrics_that_explain_again() -> None:
    images, _, labels = squares(3)
    named = ["coherency", "adcc", "sensitivity_max", "randomisation", "infidelity"]
    options = {"sensitivity_max": {"samples": 2}, "randomisation": {"stages": 2}, "infidelity": {"samples": 8}}
    seen = compare(colours(), images, methods=QUICK, metrics=named, labels=labels, options=options)
    assert seen.failures == {}
    for name in QUICK:
        assert seen.notes[name] == ()
        assert all(seen.row(name, each).n == 3 for each in named)
    assert seen.row("gaussian", "sensitivity_max").mean == 0
    assert seen.row("gaussian", "randomisation").mean == 1
    assert seen.row("random", "coherency").mean == pytest.approx(0.5, abs=0.05)
    assert seen.row("cam", "randomisation").mean < 1


def test_the_same_every_time() -> None:
    images, _, _ = squares(2)
    first, second = (
        compare(colours(), images, methods=["smooth_grad", "kernel_shap"], metrics=["complexity"], cells=4)
        for _ in range(2)
    )
    assert [row._asdict() for row in first.rows()] == [row._asdict() for row in second.rows()]


def test_nothing_of_the_model_changes() -> None:
    model, log = lived_in()
    cam = camhook.wrap(model)
    log.clear()
    images = torch.randn(2, 3, 64, 64)
    with unchanged(model):
        named = ["layer_grad_cam", "deep_lift", "lrp", "guided_backprop"]
        seen = compare(cam, images, methods=named, metrics=["complexity", "deletion"], steps=2)
    assert "lrp" in seen.failures
    assert log == ["pre", "forward"]  # of one call of cam; Captum runs on a copy


# Photos, boxes, mosaics


def test_boxes_follow_the_photo_through_resize_and_crop() -> None:
    photo = np.full((200, 400, 3), 128, dtype=np.uint8)
    photo[50:150, 150:250] = (255, 0, 0)  # the crop is the middle 200 x 200 pixels
    seen = compare(
        colours(), [photo], methods=["cam"], metrics=["energy_inside"], boxes=[[150, 50, 250, 150]], target=0
    )
    assert seen.row("cam", "energy_inside").mean > 0.8
    assert seen.row("random", "energy_inside").mean == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ImageError, match="outside what the model sees"):
        compare(colours(), [photo], methods=["cam"], boxes=[[0, 0, 90, 90]])


def test_grid_pointing_game_of_a_model_that_looks_at_each_place_alone() -> None:
    images = torch.stack([torch.eye(4)[c][:3, None, None].expand(3, SIZE, SIZE) for c in (0, 1, 2, 3)])
    seen = compare(colours(), images, methods=["cam"], metrics=["grid_pointing_game"], labels=[0, 1, 2, 3])
    row = seen.row("cam", "grid_pointing_game")
    assert row.n == 4
    assert row.mean > 0.9
    assert seen.row("random", "grid_pointing_game").mean == pytest.approx(0.25, abs=0.02)
    assert "1 mosaics of 2 x 2 confident images, 96 x 96 pixels" in seen.settings["grid pointing game"]


def test_mosaics() -> None:
    images = torch.stack([torch.eye(4)[c][:3, None, None].expand(3, SIZE, SIZE) for c in (0, 1, 2, 3, 0, 1, 2, 3)])
    cam = colours()
    seen = confident_mosaics(Subject(cam), images, None)
    assert len(seen.members) == 2
    assert sorted(sum(seen.members, ())) == list(range(8))
    assert seen.images.shape == (8, 3, 2 * SIZE, 2 * SIZE)
    for i in range(8):
        row, column = divmod(int(seen.cells[i]), 2)
        cell = seen.images[i, :, row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
        assert int(cam.model(cell[None]).argmax()) == int(seen.target[i])
    assert confident_mosaics(Subject(cam), images, None, limit=1, size=(SIZE, SIZE)).images.shape[2:] == (SIZE, SIZE)
    with pytest.raises(CamhookError, match=r"needs 4 images of different classes.* found 3 among 3"):
        confident_mosaics(Subject(cam), images[:3], None)
    with pytest.raises(CamhookError, match="found 0 among 8"):
        confident_mosaics(Subject(cam), images, (torch.arange(8) + 1) % 4)


def test_a_model_of_one_size_gets_small_mosaics() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4, img_size=32, global_pool="avg").eval()
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        model.head.weight.normal_(std=9)
    predicted = model(images).argmax(1)
    if len(predicted.unique()) == 4:
        seen = confident_mosaics(Subject(camhook.wrap(model)), images, None)
        assert seen.images.shape[2:] == (32, 32)


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"methods": ["cam", "salience"]}, CamhookError, "Did you mean saliency"),
        ({"metrics": ["delektion"]}, CamhookError, "Did you mean deletion"),
        ({"metrics": ["pointing_game"]}, CamhookError, "'pointing_game' needs boxes or masks"),
        ({"metrics": ["max_box_acc"]}, CamhookError, "'max_box_acc' needs boxes"),
        ({"metrics": []}, CamhookError, "No metric was named"),
        ({"boxes": [[0, 0, 4, 4]]}, ImageError, "boxes of 1 images for 2 images"),
        ({"boxes": [[4, 0, 4, 4]] * 2}, CamhookError, "left < right"),
        ({"masks": torch.ones(2, 3, 3)}, CamhookError, r"masks of shape \(2, 3, 3\)"),
        ({"target": [0, 1, 2]}, TargetError, "3 targets were given for 2 images"),
        ({"labels": [0]}, TargetError, "1 targets were given for 2 images"),
        ({"target": 77}, TargetError, "Class 77 does not exist"),
        ({"target": [[0, 1], [1, 2]]}, TargetError, "2 targets per image, expected one"),
        ({"baseline": "blakc"}, CamhookError, "Did you mean black"),
        ({"segments": "squares"}, CamhookError, "expected 'grid' or 'superpixels'"),
        ({"cells": 50}, CamhookError, "grid of 50 x 50 cells for images of 48 x 48"),
        ({"options": {"lime": {"n_samples": 3}}}, CamhookError, "'lime', which is neither"),
        ({"metrics": ["grid_pointing_game"]}, CamhookError, "needs 4 images of different classes"),
        ({"batch_size": -1}, CamhookError, "batch_size=-1"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[CamhookError], text: str) -> None:
    with pytest.raises(error, match=text):
        compare(colours(), squares(2)[0], **{"methods": ["cam"], **options})


# Files and the command


def test_files(found: Comparison, tmp_path: Path) -> None:
    written = found.save(tmp_path / "out")
    assert [Path(file).name for file in written] == ["report.html", "table.csv", "comparison.json", "figure.png"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert len(rows) == len(found.rows())
    assert float(rows[0]["mean"]) == found.rows()[0].mean
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert kept["failures"] == found.failures
    assert kept["methods"]["cam"]["values"]["deletion"] == found.values["cam"]["deletion"].tolist()
    assert kept["versions"]["captum"]
    found.save(tmp_path / "out")  # its own files are replaced
    (tmp_path / "out" / "table.csv").write_text("mine")
    with pytest.raises(OutputError, match="camhook did not write it"):
        found.save(tmp_path / "out")
    assert (tmp_path / "out" / "table.csv").read_text() == "mine"
    found.save(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="ends in"):
        found.save(tmp_path / "out.pdf")


def test_figure_has_a_row_for_each_image_and_a_column_for_each_method(found: Comparison) -> None:
    picture = found.figure()
    assert picture.width > 200 * (1 + len(found.methods))
    assert found.figure(limit=1).height < picture.height / 2
    assert found.overlay("cam", 0).size == (SIZE, SIZE)


def test_metered() -> None:
    with metered(torch.device("cpu")) as cost:
        time.sleep(0.05)
    assert cost.seconds >= 0.05
    assert cost.peak_bytes is None  # nothing measures it on a CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_metered_on_a_gpu() -> None:
    device = torch.device("cuda")
    before = torch.ones(10_000_000, device=device)
    with metered(device) as cost:
        torch.ones(30_000_000, device=device).sum()
    del before
    assert cost.seconds > 0
    assert cost.peak_bytes == pytest.approx(120_000_000, rel=0.02)
    images, boxes, labels = squares()
    cam = camhook.wrap(Colours().eval().to(device), data_config=CONFIG)
    seen = compare(cam, images.to(device), methods=["saliency"], boxes=boxes, labels=labels, metrics=["energy_inside"])
    assert (seen.memory["saliency"] or 0) > 0
    assert f"{seen.memory['saliency']}" in as_csv(seen)


def test_command(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    for name in ("0", "2"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "photos" / name / f"p{name}.png")
    (tmp_path / "boxes.csv").write_text("photo,left,top,right,bottom\np0.png,20,10,50,40\np2.png,20,10,50,40\n")
    common = [str(tmp_path / "photos"), "--model", "test_resnet", "--checkpoint", str(tmp_path / "weights.safetensors")]
    common += ["--num-classes", "3", "--methods", "cam,saliency", "--output", str(tmp_path / "out")]
    more = ["--metrics", "energy_inside,complexity", "--labels", "--boxes", str(tmp_path / "boxes.csv")]
    ran = CliRunner().invoke(command, [*common, *more], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "energy_inside" in ran.output
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(each["name"], each["class"]) for each in kept["images"]] == [("p0", "class 0"), ("p2", "class 2")]
    assert (tmp_path / "out" / "report.html").exists()
    listed = CliRunner().invoke(command, ["--list"], catch_exceptions=False)
    assert "integrated_gradients" in listed.output
    assert "grid_pointing_game" in listed.output
    assert CliRunner().invoke(command, ["x.png"]).exit_code == 2
    (tmp_path / "boxes.csv").write_text("photo,left,top,right,bottom\np0.png,20,10,50,40\n")
    with pytest.raises(ImageError, match=r"no box for p2\.png"):
        CliRunner().invoke(command, [*common, *more], catch_exceptions=False)


@pytest.mark.slow
def test_the_demo_from_the_command_line(tmp_path: Path) -> None:
    from camhook.demo import demo_photos

    photos = demo_photos()
    chosen = [str(photos[name]) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    arguments = [*chosen, "--model", "demo", "--steps", "28", "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert sum(not each["control"] for each in kept["methods"].values()) >= 10
    assert len(kept["metrics"]) >= 8

"""Localisation against hand-made cases, explicit loops, scikit-learn's and scikit-image's own, and chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage import measure
from sklearn.metrics import average_precision_score
from torch import Tensor

from camhook import metrics
from camhook.errors import CamhookError, ImageError

SIZE = (20, 31)
label: Any = measure.label
regionprops: Any = measure.regionprops
BOXES = [[3, 2, 15, 9], [20, 5, 31, 20], [0, 0, 10, 20]]


def noise(count: int = 3, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(boxes: Any = BOXES, size: tuple[int, int] = SIZE) -> Tensor:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


# --- pointing game ---------------------------------------------------------------------------------------------------


def test_a_map_that_is_the_box_scores_one_everywhere() -> None:
    perfect = truth().double()
    for found in (
        metrics.pointing_game(perfect, BOXES, tolerance=0),
        metrics.energy_inside(perfect, BOXES),
        metrics.max_box_acc(perfect, BOXES),
        metrics.max_box_acc_v2(perfect, BOXES),
        metrics.pixel_average_precision(perfect, truth()),
        metrics.grid_pointing_game(truth([[0, 0, 15, 10]], (20, 30)).double(), [0]),
    ):
        assert set(found.tolist()) == {1.0}
        assert found.dtype == torch.float64
    assert metrics.pxap(perfect, truth()).item() == 1.0


@pytest.mark.parametrize("tolerance", [0, 1, 2.5, 5, 15])
def test_pointing_is_the_distance_to_the_box(tolerance: float) -> None:
    values = noise(200)
    boxes = [[5, 6, 12, 9]] * 200
    expected = []
    for each in values:
        y, x = divmod(int(each.argmax()), SIZE[1])
        distances = [math.hypot(y - v, x - u) for v in range(6, 9) for u in range(5, 12)]
        expected.append(float(min(distances) <= tolerance))
    assert metrics.pointing_game(values, boxes, tolerance=tolerance).tolist() == expected
    assert metrics.pointing_game(values, masks=truth(boxes), tolerance=tolerance).tolist() == expected


def test_pointing_tolerance_is_fifteen_on_photos() -> None:
    values = torch.zeros(2, 224, 240)
    values[0, 2, 20], values[1, 2, 21] = 1, 1
    assert metrics.pointing_game(values, [[0, 0, 6, 5]] * 2).tolist() == [1, 0]  # pixel 5 is the last one inside
    assert metrics.pointing_game(values[:, 1:], [[0, 0, 6, 5]] * 2).tolist() == [0, 0]  # a small image: none


def test_equal_maxima_share_the_hit() -> None:
    flat = torch.full((3, *SIZE), -2.0)
    expected = truth().double().mean((1, 2))
    torch.testing.assert_close(metrics.pointing_game(flat, BOXES, tolerance=0), expected)
    two = torch.zeros(1, 4, 4)
    two[0, 0, 0] = two[0, 3, 3] = 1
    assert metrics.pointing_game(two, [[0, 0, 1, 1]], tolerance=0).tolist() == [0.5]


def test_a_negative_map_points_all_the_same() -> None:
    values = noise()
    found = metrics.pointing_game(values - 100, BOXES, tolerance=0)
    assert torch.equal(found, metrics.pointing_game(values, BOXES, tolerance=0))


def test_several_boxes_and_fractions() -> None:
    values = torch.zeros(1, 6, 6)
    values[0, 5, 5] = 1
    several: list[Any] = [[[0, 0, 2, 2], [4.6, 4.9, 6.0, 6.2]]]
    assert metrics.pointing_game(values, several, tolerance=0).tolist() == [1]
    assert metrics.box_masks(several, (6, 6)).sum() == 4 + 1
    assert metrics.box_masks([torch.tensor([1.1, 1.2, 1.3, 1.4])], (3, 3)).sum() == 1  # thin, but there


# --- energy ----------------------------------------------------------------------------------------------------------


def test_energy_is_the_share_of_the_positive_part() -> None:
    values = noise()
    found = metrics.energy_inside(values, BOXES)
    for each, (left, top, right, bottom), score in zip(values.tolist(), BOXES, found.tolist(), strict=True):
        inside = sum(max(each[y][x], 0) for y in range(top, bottom) for x in range(left, right))
        assert score == pytest.approx(inside / sum(max(v, 0) for row in each for v in row))
    assert torch.equal(metrics.energy_inside(values, masks=truth()), found)


def test_energy_without_positive_evidence_is_none() -> None:
    assert metrics.energy_inside(-noise().abs(), BOXES).tolist() == [0, 0, 0]
    assert metrics.grid_pointing_game(-noise().abs(), [0, 1, 2]).tolist() == [0, 0, 0]


def test_a_random_map_scores_chance() -> None:
    values = metrics.random_maps(400, (24, 24))
    boxes = [[2, 3, 14, 15]] * 400  # a quarter of the area
    masks = metrics.box_masks(boxes, (24, 24))
    assert metrics.energy_inside(values, boxes).mean().item() == pytest.approx(0.25, abs=0.005)
    assert metrics.pointing_game(values, boxes, tolerance=0).mean().item() == pytest.approx(0.25, abs=0.06)
    assert metrics.grid_pointing_game(values, [1] * 400).mean().item() == pytest.approx(0.25, abs=0.005)
    assert metrics.grid_pointing_game(values, [7] * 400, grid=3).mean().item() == pytest.approx(1 / 9, abs=0.005)
    assert metrics.pixel_average_precision(values, masks).mean().item() == pytest.approx(0.25, abs=0.01)
    assert metrics.pxap(values, masks).item() == pytest.approx(0.25, abs=0.005)


def test_margins_without_explanation_hold_no_evidence() -> None:
    values = noise().abs()
    values[:, :, :5] = float("nan")
    zeroed = values.nan_to_num(nan=0.0)
    assert torch.equal(metrics.energy_inside(values, BOXES), metrics.energy_inside(zeroed, BOXES))
    assert torch.equal(metrics.pointing_game(values, BOXES), metrics.pointing_game(zeroed, BOXES))
    assert metrics.max_box_acc(values, BOXES).isfinite().all()
    assert metrics.pxap(values, truth()).isfinite()


# --- grid ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_cells_count_along_rows(grid: int) -> None:
    values = noise(grid**2, (12, 18)).clamp(min=0)
    found = metrics.grid_pointing_game(values, list(range(grid**2)), grid=grid)
    for cell, each in enumerate(values.numpy()):
        h, w, row, column = 12 // grid, 18 // grid, cell // grid, cell % grid
        inside = each[row * h : (row + 1) * h, column * w : (column + 1) * w].sum()
        assert found[cell].item() == pytest.approx(inside / each.sum())


def test_mosaics_lie_along_rows() -> None:
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 4, 5)
    found = metrics.mosaics(images)
    assert found.shape == (2, 3, 8, 10)
    assert found[1, 2, ::4, ::5].tolist() == [[4, 5], [6, 7]]
    assert (found[0, 0, 4:, :5] == 2).all()
    with pytest.raises(ImageError, match=r"\(n \* 9, C, H, W\).*3 x 3"):
        metrics.mosaics(images, grid=3)


# --- boxes of components ---------------------------------------------------------------------------------------------


def reference_iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Count pixels."""
    first, second = (metrics.box_masks([box], SIZE)[0].numpy() for box in (a, b))
    return float((first & second).sum() / (first | second).sum())


def reference_accuracy(values: Tensor, boxes: Any, iou: float, largest: bool) -> float:
    """Follow the authors' protocol with scikit-image's components."""
    accuracies = []
    for threshold in range(255):
        met = 0
        for each, true in zip(values.numpy(), boxes, strict=True):
            scaled = (each - each.min()) / (each.max() - each.min())
            above = (scaled * 255).astype(np.uint8) > threshold
            regions = sorted(regionprops(label(above, connectivity=2)), key=lambda region: -region.area)
            corners = [np.array(region.bbox)[[1, 0, 3, 2]] for region in regions[: 1 if largest else None]]
            met += any(reference_iou(box, np.array(true)) >= iou for box in corners)
        accuracies.append(met / len(boxes))
    return max(accuracies)


def smooth(count: int = 3) -> Tensor:
    bumps = torch.nn.functional.interpolate(noise(count, (4, 5), 5)[:, None], SIZE, mode="bicubic")[:, 0]
    return bumps + 2 * truth(BOXES[:count])


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_max_box_acc_is_the_protocol(iou: float) -> None:
    found = metrics.max_box_acc(smooth(), BOXES, iou=iou)
    assert set(found.tolist()) <= {0.0, 1.0}
    assert found.mean().item() == pytest.approx(reference_accuracy(smooth(), BOXES, iou, largest=True))


def test_max_box_acc_v2_takes_all_components_and_the_mean_over_ious() -> None:
    values = noise(3, (5, 6), 9).repeat_interleave(4, 1).repeat_interleave(6, 2)[:, :20, :31] ** 2
    values = torch.nn.functional.pad(values, (0, 31 - values.shape[2])) + truth()
    found = metrics.max_box_acc_v2(values, BOXES)
    expected = [reference_accuracy(values, BOXES, iou, largest=False) for iou in (0.3, 0.5, 0.7)]
    assert found.mean().item() == pytest.approx(np.mean(expected))


def test_the_threshold_is_one_for_all_images() -> None:
    """Each map alone has a threshold that fits its box; no single one fits both."""
    first = torch.tensor([[[0.0, 0.3, 0.3, 1.0, 0.3, 0.3, 0.0, 0.0]]])
    second = torch.tensor([[[0.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0]]])
    boxes = [[1, 0, 6, 1], [7, 0, 8, 1]]
    assert metrics.max_box_acc(first, boxes[:1]).tolist() == [1]
    assert metrics.max_box_acc(second, boxes[1:]).tolist() == [1]
    assert metrics.max_box_acc(torch.cat([first, second]), boxes).tolist() == [1, 0]


def test_a_constant_map_has_no_box() -> None:
    flat = torch.full((3, *SIZE), 4.0)
    assert metrics.max_box_acc(flat, [[0, 0, 31, 20]] * 3).tolist() == [0, 0, 0]
    assert metrics.max_box_acc_v2(flat, [[0, 0, 31, 20]] * 3).tolist() == [0, 0, 0]
    share = truth().double().mean((1, 2))
    torch.testing.assert_close(metrics.pixel_average_precision(flat, truth()), share)


def test_boxes_and_precision_do_not_mind_sign_or_scale() -> None:
    values = smooth()
    for metric, wanted in ((metrics.max_box_acc, BOXES), (metrics.max_box_acc_v2, BOXES), (metrics.pxap, truth())):
        torch.testing.assert_close(metric(values * 3 - 50, wanted), metric(values, wanted))


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_precision_is_scikit_learns_per_image_and_pooled() -> None:
    values = noise().round(decimals=1)  # with ties
    found = metrics.pixel_average_precision(values, truth())
    for each, mask, score in zip(values, truth(), found, strict=True):
        assert score.item() == pytest.approx(average_precision_score(mask.flatten(), each.flatten()))
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    pooled = average_precision_score(truth().flatten(), ((values - low) / (high - low)).flatten())
    assert metrics.pxap(values, truth()).item() == pytest.approx(pooled)


def test_ignored_pixels_count_neither_way() -> None:
    values, ignore = noise(), noise(seed=4) > 1
    found = metrics.pixel_average_precision(values, truth(), ignore=ignore)
    for each, mask, out, score in zip(values, truth(), ignore, found, strict=True):
        assert score.item() == pytest.approx(average_precision_score(mask[~out], each[~out]))
    with pytest.raises(CamhookError, match="ignore"):
        metrics.pxap(values, truth(), ignore=torch.ones(3, *SIZE))


# --- all -------------------------------------------------------------------------------------------------------------


def test_one_image_scores_as_among_many() -> None:
    values, cells = noise(), [0, 3, 2]
    for together, alone in (
        (
            metrics.pointing_game(values, BOXES),
            [metrics.pointing_game(values[i : i + 1], BOXES[i : i + 1]) for i in range(3)],
        ),
        (
            metrics.energy_inside(values, BOXES),
            [metrics.energy_inside(values[i : i + 1], BOXES[i : i + 1]) for i in range(3)],
        ),
        (
            metrics.grid_pointing_game(values, cells),
            [metrics.grid_pointing_game(values[i : i + 1], cells[i : i + 1]) for i in range(3)],
        ),
        (
            metrics.pixel_average_precision(values, truth()),
            [metrics.pixel_average_precision(values[i : i + 1], truth()[i : i + 1]) for i in range(3)],
        ),
    ):
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (None, "neither boxes nor masks"),
        (BOXES[:2], "boxes of 2 images for 3 maps"),
        ([*BOXES[:2], []], "for image 2, expected at least one"),
        ([*BOXES[:2], np.empty((0, 4))], "Leave out images that have none"),
        ([*BOXES[:2], [5, 5, 5, 9]], "left < right"),
        ([*BOXES[:2], [1, 2, 3]], r"\(left, top, right, bottom\)"),
        ([*BOXES[:2], [31, 0, 40, 9]], r"outside its map of \(20, 31\)"),
    ],
)
def test_bad_boxes(boxes: Any, message: str) -> None:
    for metric in (metrics.pointing_game, metrics.energy_inside, metrics.max_box_acc):
        if boxes is None and metric is metrics.max_box_acc:
            continue
        with pytest.raises(CamhookError, match=message):
            metric(noise(), boxes)


def test_bad_masks_cells_and_options() -> None:
    with pytest.raises(CamhookError, match="both boxes and masks"):
        metrics.energy_inside(noise(), BOXES, masks=truth())
    with pytest.raises(CamhookError, match=r"masks of shape \(3, 31, 20\) for maps of \(3, 20, 31\)"):
        metrics.pxap(noise(), truth().mT)
    with pytest.raises(CamhookError, match="empty mask for image 1"):
        metrics.pixel_average_precision(noise(), truth() * torch.tensor([1, 0, 1])[:, None, None])
    with pytest.raises(CamhookError, match="tolerance=-1"):
        metrics.pointing_game(noise(), BOXES, tolerance=-1)
    with pytest.raises(CamhookError, match=r"cells \[0, 4, 1\] for 3 maps.*0 to 3"):
        metrics.grid_pointing_game(noise(), [0, 4, 1])
    with pytest.raises(CamhookError, match="one from 0 to 3 per map"):
        metrics.grid_pointing_game(noise(), [0, 1])
    with pytest.raises(CamhookError, match=r"21 x 21 cells on maps of \(20, 31\).*smaller grid or larger images"):
        metrics.grid_pointing_game(noise(), [0, 1, 2], grid=21)
    with pytest.raises(CamhookError, match="no IoU"):
        metrics.max_box_acc_v2(noise(), BOXES, ious=())


# --- controls --------------------------------------------------------------------------------------------------------


def test_controls_are_reproducible_and_their_own() -> None:
    few, many = metrics.random_maps(2, (7, 9)), metrics.random_maps(5, (7, 9))
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(metrics.random_maps(2, (7, 9), seed=1), few)
    coarse = metrics.random_maps(2, (70, 90), grid=(7, 9))
    assert coarse.shape == (2, 70, 90)
    assert (coarse.diff(dim=1).abs().max() < many.diff(dim=1).abs().max()).item()
    assert metrics.random_maps(0, (3, 3)).shape == (0, 3, 3)
    assert list(metrics.CONTROLS) == ["random", "gaussian"]
    assert all(control(3, (4, 5)).shape == (3, 4, 5) for control in metrics.CONTROLS.values())


def test_the_gaussian_is_centred_and_as_wide_as_the_photo() -> None:
    found = metrics.gaussian_maps(2, (11, 21))
    assert found.flatten(1).argmax(1).tolist() == [5 * 21 + 10] * 2
    assert torch.equal(found, found.flip(1).flip(2))
    assert found[0, 0, 10].item() == pytest.approx(math.exp(-0.5 * (5 / (0.25 * 11)) ** 2))
    assert found[0, 5, 0].item() == pytest.approx(math.exp(-0.5 * (10 / (0.25 * 21)) ** 2))


def test_bad_controls() -> None:
    with pytest.raises(CamhookError, match=r"size of \(0, 3\)"):
        metrics.random_maps(1, (0, 3))
    with pytest.raises(CamhookError, match="finer"):
        metrics.random_maps(1, (3, 3), grid=(7, 7))
    with pytest.raises(CamhookError, match="sigma=0"):
        metrics.gaussian_maps(1, (3, 3), sigma=0)

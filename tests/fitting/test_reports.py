"""The report's numbers are what plain arithmetic gives; it prints, draws and goes to JSON whatever was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from sklearn.metrics import r2_score, top_k_accuracy_score
from torch import Tensor

from camhook.drawing.charts import Chart, draw_charts
from camhook.errors import CamhookError
from camhook.fitting.fidelity import Fidelity, measure
from camhook.fitting.reports import FitReport
from camhook.fitting.rows import Rows

H, K = 500, 8


def held_out(**columns: Tensor) -> Rows:
    unknown = torch.full((H,), -1)
    plain = {
        "indices": torch.arange(H),
        "features": torch.zeros(H, 1),
        "targets": unknown,
        "weights": torch.ones(H),
        "labels": unknown,
        "predictions": unknown,
    }
    return Rows(**{**plain, **columns})


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (H, K), labels that they often hit, and classes of another model."""
    draw = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(H, K, dtype=torch.float64, generator=draw)
    labels = (scores + 2 * torch.randn(H, K, generator=draw)).argmax(1)
    return scores, labels, (scores + torch.randn(H, K, generator=draw)).argmax(1)


def test_shares_are_those_of_sklearn() -> None:
    scores, labels, own = drawn()
    found = measure(scores, held_out(targets=labels, labels=labels, predictions=own), logits=False)
    assert found.images == H
    assert found.top1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert found.agreement == pytest.approx(top_k_accuracy_score(own, scores, k=1))
    assert (found.r2, found.r2_per_class) == (None, ())


def test_r2_is_that_of_sklearn() -> None:
    scores, labels, own = drawn()
    logits = scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    found = measure(scores, held_out(targets=logits, labels=labels, predictions=own), logits=True)
    np.testing.assert_allclose(found.r2_per_class, r2_score(logits, scores, multioutput="raw_values"))
    assert found.r2 == pytest.approx(r2_score(logits, scores, multioutput="variance_weighted"))
    assert found.top1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    logits[:, 3] = 1.5
    found = measure(scores, held_out(targets=logits), logits=True)
    assert math.isnan(found.r2_per_class[3])
    assert found.r2 is not None
    assert (found.top1, found.agreement, found.calibration_error, found.reliability) == (None, None, None, ())


def test_calibration_error_by_hand() -> None:
    scores, labels, own = drawn()
    found = measure(scores, held_out(labels=labels, targets=labels), logits=False)
    sure, top = scores.softmax(1).max(1)
    expected = 0.0
    for low in range(15):
        inside = (sure >= low / 15) & (sure < (low + 1) / 15)
        if inside.any():
            gap = (top[inside] == labels[inside]).double().mean() - sure[inside].mean()
            expected += float(gap.abs() * inside.sum() / H)
    assert found.calibration_error == pytest.approx(expected)
    assert sum(images for _, _, images in found.reliability) == H
    alone = measure(scores, held_out(predictions=own, targets=scores), logits=True)  # no labels: against the model
    assert alone.calibration_error is not None
    assert alone.top1 is None


def test_calibrated_scores_have_no_calibration_error() -> None:
    chances = torch.tensor([[0.7, 0.3]]).repeat(H, 1)
    labels = (torch.arange(H) % 10 >= 7).long()
    for scores, confidence in ((chances.log(), "softmax"), (chances.logit(), "sigmoid"), (chances, "identity")):
        found = measure(scores, held_out(labels=labels, targets=labels), logits=False, confidence=confidence)  # type: ignore[arg-type]
        assert found.calibration_error == pytest.approx(0, abs=1e-6)
        (sure, right, images), *others = found.reliability
        assert [sure, right] == pytest.approx([0.7, 0.7])
        assert (images, others) == (H, [])
        assert found.top5 is None  # of two classes


def test_several_labels_an_image() -> None:
    targets = torch.zeros(H, 6)
    targets[:, 1:3] = 1
    scores = torch.zeros(H, 6)
    scores[: H // 2, 2], scores[H // 2 :, 5] = 1, 1
    found = measure(scores, held_out(targets=targets), logits=False, confidence="sigmoid")
    assert (found.top1, found.top5, found.agreement) == (0.5, 1.0, None)


def test_weightless_rows_and_none_at_all() -> None:
    scores, labels, _ = drawn()
    weights = torch.ones(H)
    weights[100:] = 0
    found = measure(scores, held_out(targets=labels, labels=labels, weights=weights), logits=False)
    assert found.images == 100
    assert found.top1 == pytest.approx((scores.argmax(1) == labels)[:100].double().mean().item())
    assert measure(scores, held_out(weights=0 * weights), logits=False) == Fidelity(0)
    with pytest.raises(CamhookError, match=r"Found scores \(3, 8\), expected \(500, K\)"):
        measure(scores[:3], held_out(), logits=False)


FIDELITY = Fidelity(
    images=500,
    top1=0.912,
    top5=0.99,
    agreement=0.93,
    r2=0.87,
    r2_per_class=(0.9, 0.31, math.nan),
    calibration_error=0.041,
    reliability=((0.3, 0.25, 100), (0.9, 0.92, 400)),
)
REPORT = FitReport(
    model="vgg16",
    target_layer="features",
    pooling="gap",
    targets="logits",
    solver="ridge",
    num_classes=1000,
    num_features=512,
    fidelity=FIDELITY,
    penalty=10.0,
    curve=((0.1, 3.0), (10.0, 2.0), (100.0, 2.5)),
    fitted=4493,
    class_counts=(1500, 1493, 1500),
    skipped=tuple((f"{n}.jpg", "truncated") for n in range(7)),
    seconds=20.0,
    solve_seconds=0.25,
    replaced_parameters=123_642_856,
    class_names=("cat", "dog", "owl"),
)
BARE = FitReport("m", "l", "gap", "labels", "logistic", 2, 3, Fidelity(0), 0.0, fitted=5, seconds=0.0)

TABLE = """\
Probe on vgg16 at features: 1,000 classes, 512 features
  fitted             ridge on logits, pooled by gap
  held out           500 images
  top-1              0.912
  top-5              0.990
  agreement          0.930
  R2                 0.870 (worst 0.310: dog)
  calibration error  0.041
  penalty            10 (of 3, 0.1 to 1e+02)
  images             4,493, 1,493 to 1,500 a class
  skipped            7 of 5,000
    0.jpg: truncated
    1.jpg: truncated
    2.jpg: truncated
    3.jpg: truncated
    4.jpg: truncated
    and 2 more
  speed              250 images/s (20 s, solved in 0.25 s)
  parameters         513,000, in place of 123,642,856"""


def test_it_prints() -> None:
    assert str(REPORT) == TABLE
    bare = str(BARE)
    assert "none: nothing was measured" in bare
    assert not {"top-1", "R2", "skipped"} & set(bare.split())
    assert "nan" not in bare


def test_it_goes_to_json() -> None:
    found = json.loads(json.dumps(REPORT.as_dict(), allow_nan=False))
    assert found["fidelity"]["r2_per_class"] == [0.9, 0.31, None]
    assert (found["images_per_second"], found["parameters"], found["penalty"]) == (250.0, 513_000, 10.0)
    assert json.loads(json.dumps(BARE.as_dict(), allow_nan=False))["images_per_second"] is None
    assert REPORT.summary() == {
        "images": 500, "top1": 0.912, "top5": 0.99, "agreement": 0.93, "r2": 0.87, "calibration_error": 0.041,
    }  # fmt: skip
    assert BARE.summary() == {"images": 0}


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        BARE,
        replace(REPORT, penalty=0.0, curve=((0.0, 1.0), (1.0, 1.0))),
        replace(REPORT, fidelity=Fidelity(1, r2=None, r2_per_class=(math.nan,), reliability=((1.0, 0.0, 1),))),
        replace(REPORT, fidelity=replace(FIDELITY, r2_per_class=tuple(np.linspace(-1, 1, 1000)))),
    ],
)
def test_it_draws(report: FitReport) -> None:
    picture = report.figure()
    assert isinstance(picture, Image.Image)
    assert picture.width > 300
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20
    assert pyplot.get_fignums() == []  # of the user's own


def test_charts() -> None:
    flat: Any = [[(1.0, 2.0)]]
    assert draw_charts([Chart(flat)], size=(120, 160)).size == (160, 120)
    rising = np.asarray(draw_charts([Chart([[(0.0, 0.0), (1.0, 1.0)]])], size=(150, 150)))
    blue = np.argwhere((rising[..., 2] > 150) & (rising[..., 0] < 80))
    assert np.corrcoef(blue.T)[0, 1] < -0.99  # up to the right
    with pytest.raises(CamhookError, match="no points to draw"):
        draw_charts([Chart([[(math.nan, 1.0), (0.0, 1.0)]], log_x=True)])

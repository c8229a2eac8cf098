"""The moments are those of the data, whatever the order, the batches and the ranks; every image counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from camhook.errors import CamhookError
from camhook.fitting.moments import Moments
from camhook.fitting.rows import sample_hash
from camhook.fitting.statistics import Statistics

C, K, N = 6, 4, 700
SETTINGS: dict[str, Any] = {"num_features": C, "num_targets": K, "folds": 3, "holdout": 0.3, "capacity": 50}


def data(kind: str, count: int = N) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(count, C, generator=draw) + 100 * torch.arange(C)
    labels = torch.randint(K, (count,), generator=draw)
    scores = torch.randn(count, K, generator=draw) + 50
    several = (torch.rand(count, K, generator=draw) < 0.4).float()
    return {
        "features": features,
        "targets": {"labels": labels, "logits": scores, "multilabel": several}[kind],
        "weights": torch.rand(count, generator=draw) * (torch.rand(count, generator=draw) > 0.1),
        "labels": labels,
        "predictions": torch.randint(K, (count,), generator=draw),
    }


def counted(kind: str, indices: Tensor, batch: int, settings: dict[str, Any] = SETTINGS) -> Statistics:
    statistics, rows = Statistics(**settings, targets=kind), data(kind)  # type: ignore[arg-type]
    for part in indices.split(batch):
        statistics.update(part, **{name: value[part] for name, value in rows.items()})
    return statistics


def assert_same(found: Statistics, expected: Statistics) -> None:
    state = found.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-9, msg=f"{name}: {state[name]} {value}")


KINDS = ["labels", "logits", "multilabel"]


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_the_data(kind: str) -> None:
    statistics, rows = counted(kind, torch.arange(N), 32), data(kind)
    hashes = sample_hash(torch.arange(N).numpy())
    low = np.flatnonzero(hashes < 0.3 * 2**64)
    held = low[np.argsort(hashes[low])][:50]
    assert statistics.holdout.indices.tolist() == held.tolist()
    seen = 0
    for number, fold in enumerate(statistics.folds):
        mine = torch.tensor([i for i in range(N) if hashes[i] % 3 == number and i not in held])
        x, w = rows["features"][mine].double(), rows["weights"][mine].double()
        y = rows["targets"][mine]
        y = torch.nn.functional.one_hot(y, K).double() if kind == "labels" else y.double()
        dx, dy = x - w @ x / w.sum(), y - w @ y / w.sum()
        expected = Moments(
            torch.tensor(len(mine)), (y > 0).sum(0), w.sum(), w @ x / w.sum(), w @ y / w.sum(),
            dx.T @ (w[:, None] * dx), dy.T @ (w[:, None] * dx), w @ dy.square(),
        )  # fmt: skip
        for name, value in vars(expected).items():
            torch.testing.assert_close(vars(fold)[name], value, rtol=1e-12, atol=1e-9)
        seen += len(mine)
    assert seen + len(held) == N


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7, N])
def test_batches_and_order_do_not_matter(kind: str, batch: int) -> None:
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert_same(counted(kind, shuffled, batch), counted(kind, torch.arange(N), 64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 5])
def test_merged_parts_are_the_whole(kind: str, parts: int) -> None:
    merged = Statistics(**SETTINGS, targets=kind)  # type: ignore[arg-type]
    for part in range(parts):
        merged.merge(counted(kind, torch.arange(part, N, parts), 16))
    assert_same(merged, counted(kind, torch.arange(N), 64))


@pytest.mark.parametrize(("holdout", "capacity"), [(0.0, 50), (0.5, 0), (0.99, 10_000)])
def test_holdout_of_any_size(holdout: float, capacity: int) -> None:
    statistics = counted("labels", torch.arange(N), 64, {**SETTINGS, "holdout": holdout, "capacity": capacity})
    assert len(statistics.holdout) + statistics.total().count == N
    assert len(statistics.holdout) == (0 if holdout < 0.9 else pytest.approx(0.99 * N, abs=10))


def test_holdout_rows_are_the_rows() -> None:
    rows, held = data("logits"), counted("logits", torch.arange(N), 64).holdout
    for name, value in rows.items():
        torch.testing.assert_close(vars(held)[name], value[held.indices], check_dtype=False)
    assert (sample_hash(held.indices.numpy())[1:] > sample_hash(held.indices.numpy())[:-1]).all()


def test_large_mean_does_not_drown_the_variance() -> None:
    small = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    statistics = Statistics(2, 1, targets="logits", holdout=0)
    for start in range(0, 3000, 100):
        part = torch.arange(start, start + 100)
        statistics.update(part, small[part] + 1e8, small[part, :1] - 1e8)
    centred = small - small.mean(0)
    torch.testing.assert_close(statistics.total().gram, centred.T @ centred, rtol=1e-6, atol=1e-4)


def test_state_goes_around() -> None:
    half = counted("labels", torch.arange(N // 2), 64)
    again = Statistics(**half.settings)
    again.load_state_dict(half.state_dict())
    rows = data("labels")
    part = torch.arange(N // 2, N)
    again.update(part, **{name: value[part] for name, value in rows.items()})
    assert_same(again, counted("labels", torch.arange(N), 64))
    state = again.state_dict()
    with pytest.raises(
        CamhookError, match=r"Found torch.float64 \(3, 6, 6\) for folds.gram, expected torch.float64 \(3, 5, 5\)"
    ):
        Statistics(**{**SETTINGS, "num_features": 5}).load_state_dict(
            {k: v for k, v in state.items() if "feature" not in k} | {"folds.feature_mean": torch.zeros(3, 5).double()}
        )
    del state["folds.gram"]
    with pytest.raises(CamhookError, match=r"Found nothing for folds.gram"):
        again.load_state_dict(state)


def test_the_caller_may_reuse_its_tensors_and_be_in_inference_mode() -> None:
    features, index, statistics = torch.ones(2, 2), np.array([0, 1]), Statistics(2, 2, holdout=0)
    with torch.inference_mode():
        statistics.update(index, features, torch.tensor([0, 1]))
        assert statistics.total().count == 2
        made_inside = Statistics(2, 2, holdout=0)
    statistics.update(index + 2, features, torch.tensor([0, 1]))
    features.fill_(torch.nan)
    index.fill(-1)
    assert statistics.total().feature_mean.tolist() == [1, 1]
    made_inside.update([0], torch.ones(1, 2, requires_grad=True), torch.tensor([1]))
    assert not made_inside.total().gram.requires_grad


ROWS, LABELS = torch.ones(3, C), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("indices", "features", "targets", "weights", "words"),
    [
        ([0, 1, 2], ROWS[:, :5], LABELS, None, r"features of shape \(3, 5\), expected \(3, 6\)"),
        ([0, 1], ROWS, LABELS, None, r"features of shape \(3, 6\), expected \(2, 6\)"),
        ([0, 1, 2], ROWS, LABELS[:, None], None, r"targets of shape \(3, 1\), expected \(3,\)"),
        (
            [0, 1, 2],
            ROWS,
            torch.tensor([0, 4, 1]),
            None,
            r"labels torch.int64 from 0 to 4, expected integers from 0 to 3",
        ),
        ([0, 1, 2], ROWS, torch.tensor([0, -1, 1]), None, r"from -1 to 1"),
        ([0, 1, 2], ROWS, torch.tensor([0.0, 1.0, 2.0]), None, r"torch.float32 .* expected integers"),
        ([0, 1, 2], ROWS, LABELS, torch.tensor([1.0, -1.0, 1.0]), r"weights that are negative"),
        ([0, 1, 2], ROWS, LABELS, torch.tensor([1.0, torch.nan, 1.0]), r"not finite"),
        ([0, 1, -2], ROWS, LABELS, None, r"image number -2"),
    ],
)
def test_bad_batches_are_refused(indices: Any, features: Tensor, targets: Tensor, weights: Any, words: str) -> None:
    statistics = Statistics(**SETTINGS)
    with pytest.raises(CamhookError, match=words):
        statistics.update(indices, features, targets, weights)
    assert statistics.total().count == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    statistics, features = Statistics(**SETTINGS), torch.ones(4, C)
    features[2, 1] = value
    statistics.update([10, 11, 12, 13], features, torch.zeros(4, dtype=torch.int64))
    for _ in range(2):  # nothing was counted, and nothing is forgotten
        with pytest.raises(CamhookError, match=r"features that are NaN or infinite in 1 images \(first: 12\)"):
            statistics.total()
    dense = Statistics(C, 1, targets="logits")
    dense.update([0], torch.ones(1, C), torch.full((1, 1), value))
    with pytest.raises(CamhookError, match="targets that are NaN"):
        dense.state_dict()


def test_what_cannot_be_settings() -> None:
    with pytest.raises(CamhookError, match=r"targets='label', expected one of labels, multilabel, logits"):
        Statistics(2, 2, targets="label")  # type: ignore[arg-type]
    for wrong in ({"folds": 1}, {"holdout": 1.0}, {"capacity": -1}):
        with pytest.raises(CamhookError, match=str(next(iter(wrong)))):
            Statistics(2, 2, **wrong)
    with pytest.raises(CamhookError, match=r"folds=4 differ"):
        Statistics(2, 2).merge(Statistics(2, 2, folds=4))
    with pytest.raises(CamhookError, match="other than 0 and 1"):
        Statistics(2, 2, targets="multilabel").update([0], torch.ones(1, 2), torch.full((1, 2), 0.5))


def test_an_image_held_out_twice_is_noticed() -> None:
    statistics = counted("labels", torch.arange(N), 64)
    with pytest.raises(CamhookError, match="counted twice"):
        statistics.merge(counted("labels", torch.arange(N), 64))
    assert_same(statistics, counted("labels", torch.arange(N), 64))


def test_sums_interrupted_half_way_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = counted("labels", torch.arange(N), N)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Moments, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        statistics.total()
    for read in (statistics.state_dict, statistics.total, lambda: statistics.holdout):
        with pytest.raises(CamhookError, match="interrupted half-way"):
            read()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 1, 1], "one class only"),
        ([0, 1, 3, 1], "no images to fit on for class 2"),
        ([], "one class only|no images"),
    ],
)
def test_missing_classes(labels: list[int], words: str) -> None:
    statistics = Statistics(1, 4, holdout=0)
    statistics.update(range(len(labels)), torch.ones(len(labels), 1), torch.tensor(labels, dtype=torch.int64))
    with pytest.raises(CamhookError, match=words):
        statistics.check_classes()


def test_a_class_that_is_only_held_out() -> None:
    statistics = Statistics(1, 3, holdout=0.2, capacity=5)
    index = np.flatnonzero(sample_hash(np.arange(30)) < 0.2 * 2**64)[:1]
    labels = torch.tensor([2 if i == index else i % 2 for i in range(30)])
    statistics.update(range(30), torch.ones(30, 1), labels)
    with pytest.raises(CamhookError, match=r"class 2 \(1 held out\); add images"):
        statistics.check_classes()


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        for kind in KINDS:  # the last rank has no images: it must take part all the same
            statistics = counted(kind, torch.arange(rank, N, world - 1)[: N if rank < world - 1 else 0], 16)
            before = statistics.state_dict()
            save_file(statistics.all_reduce().state_dict(), f"{folder}/{kind}{rank}")
            assert all(torch.equal(value, before[name]) for name, value in statistics.state_dict().items())
    finally:
        dist.destroy_process_group()


def test_ranks_together_are_one(tmp_path: Path) -> None:
    start_processes(one_rank, (world := 3, str(tmp_path)), nprocs=world, start_method="spawn")
    for kind in KINDS:
        states = [load_file(tmp_path / f"{kind}{rank}") for rank in range(world)]
        found = Statistics(**SETTINGS, targets=kind)  # type: ignore[arg-type]
        for state in states:
            assert all(torch.equal(state[name], states[0][name]) for name in state)
            found.load_state_dict(state)
            assert_same(found, counted(kind, torch.arange(N), 64))


def test_alone_all_reduce_copies() -> None:
    statistics = counted("labels", torch.arange(N), 64)
    again = statistics.all_reduce()
    assert_same(again, statistics)
    statistics.folds[0].gram.zero_()
    assert again.folds[0].gram.any()

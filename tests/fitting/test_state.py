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

from camhook.distributed import Ranks
from camhook.errors import CamhookError
from camhook.fitting.moments import Moments
from camhook.fitting.rows import Rows, sample_hash
from camhook.fitting.state import FitState

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


def rows(kind: str, part: Tensor) -> Rows:
    return Rows.of(part, **{name: value[part] for name, value in data(kind).items()})


def values_of(state: FitState) -> dict[str, Tensor]:
    """Return all that a state has counted, by name."""
    folds, held_out = state.folds, state.holdout
    found = {f"folds.{name}": torch.stack([vars(fold)[name] for fold in folds]).cpu() for name in vars(folds[0])}
    return found | {f"holdout.{name}": value.clone() for name, value in vars(held_out).items()}


def counted(kind: str, indices: Tensor, batch: int, settings: dict[str, Any] = SETTINGS) -> FitState:
    state = FitState(**settings, targets=kind)  # type: ignore[arg-type]
    for part in indices.split(batch):
        state.update(rows(kind, part))
    return state


def assert_same(found: FitState, expected: FitState) -> None:
    values = values_of(found)
    for name, value in values_of(expected).items():
        torch.testing.assert_close(values[name], value, rtol=1e-12, atol=1e-9, msg=f"{name}: {values[name]} {value}")


KINDS = ["labels", "logits", "multilabel"]


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_the_data(kind: str) -> None:
    state, columns = counted(kind, torch.arange(N), 32), data(kind)
    hashes = sample_hash(torch.arange(N).numpy())
    low = np.flatnonzero(hashes < 0.3 * 2**64)
    held = low[np.argsort(hashes[low])][:50]
    assert state.holdout.indices.tolist() == held.tolist()
    seen = 0
    for number, fold in enumerate(state.folds):
        mine = torch.tensor([i for i in range(N) if hashes[i] % 3 == number and i not in held])
        x, w = columns["features"][mine].double(), columns["weights"][mine].double()
        y = columns["targets"][mine]
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


@pytest.mark.parametrize(("holdout", "capacity"), [(0.0, 50), (0.5, 0), (0.99, 10_000)])
def test_holdout_of_any_size(holdout: float, capacity: int) -> None:
    state = counted("labels", torch.arange(N), 64, {**SETTINGS, "holdout": holdout, "capacity": capacity})
    assert len(state.holdout) + state.total().count == N
    assert len(state.holdout) == (0 if holdout < 0.9 else pytest.approx(0.99 * N, abs=10))


def test_holdout_rows_are_the_rows() -> None:
    columns, held = data("logits"), counted("logits", torch.arange(N), 64).holdout
    for name, value in columns.items():
        torch.testing.assert_close(vars(held)[name], value[held.indices], check_dtype=False)
    assert (sample_hash(held.indices.numpy())[1:] > sample_hash(held.indices.numpy())[:-1]).all()


def test_large_mean_does_not_drown_the_variance() -> None:
    small = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = FitState(2, 1, targets="logits", holdout=0)
    for start in range(0, 3000, 100):
        part = torch.arange(start, start + 100)
        state.update(Rows.of(part, small[part] + 1e8, small[part, :1] - 1e8))
    centred = small - small.mean(0)
    torch.testing.assert_close(state.total().gram, centred.T @ centred, rtol=1e-6, atol=1e-4)


def test_the_caller_may_reuse_its_tensors_and_be_in_inference_mode() -> None:
    features, index, state = torch.ones(2, 2), np.array([0, 1]), FitState(2, 2, holdout=0)
    with torch.inference_mode():
        state.update(Rows.of(index, features, torch.tensor([0, 1])))
        assert state.total().count == 2
        made_inside = FitState(2, 2, holdout=0)
    state.update(Rows.of(index + 2, features, torch.tensor([0, 1])))
    features.fill_(torch.nan)
    index.fill(-1)
    assert state.total().feature_mean.tolist() == [1, 1]
    made_inside.update(Rows.of([0], torch.ones(1, 2, requires_grad=True), torch.tensor([1])))
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
            r"labels from 0 to 4, expected integers from 0 to 3",
        ),
        ([0, 1, 2], ROWS, torch.tensor([0, -1, 1]), None, r"from -1 to 1"),
        ([0, 1, 2], ROWS, torch.tensor([0.0, 1.0, 2.0]), None, r"torch.float32 .* expected integers"),
        ([0, 1, 2], ROWS, LABELS, torch.tensor([1.0, -1.0, 1.0]), r"weights that are negative"),
        ([0, 1, 2], ROWS, LABELS, torch.tensor([1.0, torch.nan, 1.0]), r"not finite"),
        ([0, 1, -2], ROWS, LABELS, None, r"image number -2"),
    ],
)
def test_bad_batches_are_refused(indices: Any, features: Tensor, targets: Tensor, weights: Any, words: str) -> None:
    state = FitState(**SETTINGS)
    with pytest.raises(CamhookError, match=words):
        state.update(Rows.of(indices, features, targets, weights))
    assert state.total().count == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    state, features = FitState(**SETTINGS), torch.ones(4, C)
    features[2, 1] = value
    with pytest.raises(CamhookError, match=r"features that are NaN or infinite for 1 images \(numbers 12\)"):
        state.update(Rows.of([10, 11, 12, 13], features, torch.zeros(4, dtype=torch.int64)))
    assert state.total().count == 0
    dense = FitState(C, 1, targets="logits")
    with pytest.raises(CamhookError, match="targets that are NaN"):
        dense.update(Rows.of([0], torch.ones(1, C), torch.full((1, 1), value)))


def test_what_cannot_be_settings() -> None:
    with pytest.raises(CamhookError, match=r"targets='label', expected one of labels, multilabel, logits"):
        FitState(2, 2, targets="label")  # type: ignore[arg-type]
    for wrong in ({"folds": 1}, {"holdout": 1.0}, {"capacity": -1}):
        with pytest.raises(CamhookError, match=str(next(iter(wrong)))):
            FitState(2, 2, **wrong)
    with pytest.raises(CamhookError, match="other than 0 and 1"):
        FitState(2, 2, targets="multilabel").update(Rows.of([0], torch.ones(1, 2), torch.full((1, 2), 0.5)))


def test_an_image_held_out_twice_is_noticed() -> None:
    state = counted("labels", torch.arange(N), 64)
    assert len(state.holdout) == 50
    state.update(rows("labels", torch.arange(N)))
    with pytest.raises(CamhookError, match="counted twice"):
        state.total()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 1, 1], "one class only"),
        ([0, 1, 3, 1], "no images to fit on for class 2"),
        ([], "one class only|no images"),
    ],
)
def test_missing_classes(labels: list[int], words: str) -> None:
    state = FitState(1, 4, holdout=0)
    state.update(Rows.of(range(len(labels)), torch.ones(len(labels), 1), torch.tensor(labels, dtype=torch.int64)))
    with pytest.raises(CamhookError, match=words):
        state.check_classes()


def test_a_class_that_is_only_held_out() -> None:
    state = FitState(1, 3, holdout=0.2, capacity=5)
    index = np.flatnonzero(sample_hash(np.arange(30)) < 0.2 * 2**64)[:1]
    labels = torch.tensor([2 if i == index else i % 2 for i in range(30)])
    state.update(Rows.of(range(30), torch.ones(30, 1), labels))
    with pytest.raises(CamhookError, match=r"class 2 \(1 held out\); add images"):
        state.check_classes()


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        for kind in KINDS:  # the last rank has no images: it must take part all the same
            state = counted(kind, torch.arange(rank, N, world - 1)[: N if rank < world - 1 else 0], 16)
            state.all_reduce(Ranks.of_process_group())
            save_file(values_of(state), f"{folder}/{kind}{rank}")
    finally:
        dist.destroy_process_group()


def test_ranks_together_are_one(tmp_path: Path) -> None:
    start_processes(one_rank, (world := 3, str(tmp_path)), nprocs=world, start_method="spawn")
    for kind in KINDS:
        found = [load_file(tmp_path / f"{kind}{rank}") for rank in range(world)]
        for name, value in values_of(counted(kind, torch.arange(N), 64)).items():
            assert all(torch.equal(each[name], found[0][name]) for each in found)
            torch.testing.assert_close(found[0][name], value, rtol=1e-12, atol=1e-9)


def test_alone_all_reduce_changes_nothing() -> None:
    state = counted("labels", torch.arange(N), 64)
    state.all_reduce(Ranks())
    assert_same(state, counted("labels", torch.arange(N), 64))

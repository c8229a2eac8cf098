"""A killed run goes on: no image twice, none lost, and the same sums as a run that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from camhook.errors import CamhookError, OutputError
from camhook.fitting.caches import FeatureCache
from camhook.fitting.checkpoints import Progress, load_checkpoint, save_checkpoint
from camhook.fitting.files import read_tensors, write_tensors
from camhook.fitting.solvers import solve_logistic
from camhook.fitting.statistics import Statistics

RUN: dict[str, Any] = {"model": "resnet18", "images": 1000, "size": (224, 224)}
C, K, N = 16, 3, 3000


def started() -> tuple[Statistics, Progress]:
    return Statistics(C, K, folds=3, holdout=0.2, capacity=40), Progress(N)


def rows(index: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features and labels of images, by their numbers alone."""
    number = torch.as_tensor(index, dtype=torch.float64)
    return torch.sin(number[:, None] * torch.arange(1.0, C + 1)), (number % K).long()


def fit(path: Path, pause: float = 0.0, every: int = 4) -> Statistics:
    statistics, progress = load_checkpoint(path, RUN) or started()
    for number, start in enumerate(range(0, len(remaining := progress.remaining()), 20), 1):
        index = remaining[start : start + 20]
        broken = index[index % 101 == 7]
        for image in broken.tolist():
            progress.skip(image, f"{image}.jpg", "truncated")
        index = index[index % 101 != 7]
        statistics.update(index, *rows(index))
        progress.add(index)
        time.sleep(pause)
        if number % every == 0:
            save_checkpoint(path, statistics, progress, RUN)
    save_checkpoint(path, statistics, progress, RUN)
    return statistics


def assert_same(found: Statistics, expected: Statistics) -> None:
    state = found.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-9)


def killed_often(folder: str) -> None:
    torch.set_num_threads(1)
    path, draw, forked = Path(folder, "fit.checkpoint"), random.Random(0), multiprocessing.get_context("fork")
    stood, done = set(), 0
    for attempt in range(200):
        run = forked.Process(target=fit, args=(path, 0.001, 1 + attempt % 4))
        run.start()
        run.join(draw.uniform(0.005, 0.06 + 0.002 * attempt))
        run.kill()  # SIGKILL; of no effect on one that is through
        run.join()
        if (found := load_checkpoint(path, RUN)) is not None:
            assert len(found[1]) >= done  # whatever was on disk stays done
            assert found[0].total().count + len(found[0].holdout) + len(found[1].skipped) == len(found[1])
            done = len(found[1])
            stood.add(done)
        if run.exitcode == 0:
            break
    assert done == N
    Path(folder, "stood").write_text(str(len(stood)))


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    run = multiprocessing.get_context("spawn").Process(target=killed_often, args=(str(tmp_path),))
    run.start()
    run.join()
    assert run.exitcode == 0
    assert int((tmp_path / "stood").read_text()) >= 4  # it was killed in the midst, several times
    found = load_checkpoint(tmp_path / "fit.checkpoint", RUN)
    assert found is not None
    assert_same(found[0], fit(tmp_path / "undisturbed"))
    assert found[1].remaining().tolist() == []
    assert sorted(found[1].skipped) == list(range(7, N, 101))
    assert found[1].skipped[108] == ("108.jpg", "truncated")


def test_a_save_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.checkpoint"
    fit(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
            save_checkpoint(path, *started(), RUN)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fit.checkpoint"]
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "file", *started(), RUN)


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.checkpoint"
    assert load_checkpoint(path, RUN) is None
    save_checkpoint(path, *started(), RUN)
    with pytest.raises(
        CamhookError, match=r"another run \(images: 1000 then, 2 now; model: 'resnet18' then, None now\)"
    ):
        load_checkpoint(path, {"images": 2, "size": (224, 224)})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 100], ids=["empty", "zip", "bytes"])
def test_strange_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CamhookError, match="cannot be read as a camhook checkpoint 1"):
        load_checkpoint(path, RUN)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CamhookError, match="a safetensors file of format None, expected 'camhook checkpoint 1'"):
        load_checkpoint(path, RUN)
    save_checkpoint(path, *started(), RUN)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CamhookError, match="cannot be read"):
        load_checkpoint(path, RUN)
    with pytest.raises(CamhookError, match="cannot be read"):
        read_tensors(tmp_path, "camhook checkpoint 1")


def test_tensors_and_facts_go_around(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(1.5, dtype=torch.float64)}
    write_tensors(tmp_path / "file", "kind", tensors, {"fact": ["ü", None]})
    found, facts = read_tensors(tmp_path / "file", "kind")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert facts == {"fact": ["ü", None]}
    assert load_file(tmp_path / "file").keys() == {"a", "b"}  # any reader of safetensors can read it
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode  # and so can whoever may read


def test_progress() -> None:
    progress, other = Progress(19), Progress(19)
    assert len(progress) == 0
    progress.add(torch.tensor([0, 7, 8, 18]))
    progress.add([])
    other.skip(3, "d.jpg", "empty")
    other.add(np.array([17]))
    progress.merge(other)
    assert progress.remaining().tolist() == [i for i in range(19) if i not in (0, 3, 7, 8, 17, 18)]
    assert (len(progress), progress.skipped) == (6, {3: ("d.jpg", "empty")})
    for twice in ([8], [5, 5]):
        with pytest.raises(CamhookError, match="done twice"):
            progress.add(twice)
    for wrong in (19, -1):
        with pytest.raises(CamhookError, match=f"Found image {wrong} of 19 images"):
            progress.add([1, wrong])
    with pytest.raises(CamhookError, match="done twice"):
        progress.merge(other)
    with pytest.raises(CamhookError, match="over 20 images, expected 19"):
        progress.merge(Progress(20))
    assert len(progress) == 6


def test_a_cache_in_files_goes_on_and_solves_as_in_memory(tmp_path: Path) -> None:
    features, labels = rows(range(200))
    memory, mapped = FeatureCache(210, C), FeatureCache(210, C, folder=tmp_path / "cache")
    for cache in (memory, mapped):
        cache.write(range(100), features[:100], labels[:100])
    mapped.flush()
    del mapped
    mapped = FeatureCache(210, C, folder=tmp_path / "cache")
    for cache in (memory, mapped):
        cache.write(range(50, 200), features[50:], labels[50:], torch.ones(150))
    first, second = (
        solve_logistic(cache.features, cache.targets, num_classes=K, weights=cache.weights)
        for cache in (memory, mapped)
    )
    expected = solve_logistic(features.float(), labels, num_classes=K)
    assert torch.equal(first.weight, second.weight)
    torch.testing.assert_close(first.weight, expected.weight)
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {"features.npy", "targets.npy", "weights.npy"}


def test_a_cache_of_other_data_is_refused(tmp_path: Path) -> None:
    FeatureCache(10, 3, num_targets=2, folder=tmp_path / "cache")
    with pytest.raises(CamhookError, match=r"features.npy holds float32 \(10, 3\), expected float32 \(11, 3\)"):
        FeatureCache(11, 3, num_targets=2, folder=tmp_path / "cache")
    with pytest.raises(CamhookError, match=r"targets.npy holds float32 \(10, 2\), expected int64 \(10,\)"):
        FeatureCache(10, 3, folder=tmp_path / "cache")
    (tmp_path / "cache" / "weights.npy").write_bytes(b"not an array")
    with pytest.raises(OutputError, match=r"weights.npy cannot be used"):
        FeatureCache(10, 3, num_targets=2, folder=tmp_path / "cache")
    with pytest.raises(OutputError, match="cannot be used"):
        FeatureCache(10, 3, folder=tmp_path / "cache" / "weights.npy")

"""A killed run goes on: no image twice, none lost, and the same rows as a run that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from camhook.distributed import Ranks
from camhook.errors import CamhookError, OutputError
from camhook.files import read_tensors, write_tensors
from camhook.fitting.rows import Rows
from camhook.fitting.shards import FeatureStore
from camhook.fitting.state import FitState

RUN: dict[str, Any] = {"model": "resnet18", "images": 1000, "size": (224, 224)}
C, K, N = 16, 3, 3000


def rows(index: Any) -> Rows:
    """Return the features and labels of images, by their numbers alone."""
    number = torch.as_tensor(index, dtype=torch.float64)
    features = torch.sin(number[:, None] * torch.arange(1.0, C + 1))
    return Rows.of(index, features, (number % K).long(), labels=(number % K).long(), predictions=(number % 2).long())


def fill(path: Path, pause: float = 0.0, every: int = 4) -> FeatureStore:
    store = FeatureStore(path, RUN)
    done = set(store.indices().tolist())
    for number, part in enumerate(torch.tensor([i for i in range(N) if i not in done]).split(20), 1):
        for image in part[part % 101 == 7].tolist():
            store.skip(image, f"{image}.jpg", "truncated")
        if len(index := part[part % 101 != 7]):
            store.append(rows(index))
        time.sleep(pause)
        if number % every == 0:
            store.flush(0.5)
    store.flush(0.25)
    return store


def summed(store: FeatureStore) -> FitState:
    state = FitState(C, K, folds=3, holdout=0.2, capacity=40)
    for block in store.blocks():
        state.update(block)
    return state


def assert_same(found: FeatureStore, expected: FeatureStore) -> None:
    assert found.skipped == expected.skipped
    found_rows, expected_rows = (Rows.joined(list(store.blocks())) for store in (found, expected))
    found_rows, expected_rows = (each.take(each.indices.argsort()) for each in (found_rows, expected_rows))
    for name, value in vars(expected_rows).items():
        assert torch.equal(vars(found_rows)[name], value), name
    state, other = summed(found).total(), summed(expected).total()
    for name, value in vars(other).items():
        torch.testing.assert_close(vars(state)[name], value, rtol=1e-12, atol=1e-9)


def killed_often(folder: str) -> None:
    torch.set_num_threads(1)
    path, draw, forked = Path(folder, "fit.checkpoint"), random.Random(0), multiprocessing.get_context("fork")
    sizes, done = set(), 0
    for attempt in range(200):
        run = forked.Process(target=fill, args=(path, 0.001, 1 + attempt % 4))
        run.start()
        run.join(draw.uniform(0.005, 0.06 + 0.002 * attempt))
        run.kill()  # SIGKILL; of no effect on one that is through
        run.join()
        found = FeatureStore(path, RUN)
        assert len(found.indices()) >= done  # whatever was on disk stays done, each image once
        assert sum(map(len, found.blocks())) + len(found.skipped) == len(found.indices())
        done = len(found.indices())
        sizes.add(done)
        if run.exitcode == 0:
            break
    assert done == N
    Path(folder, "sizes").write_text(str(len(sizes - {0})))


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    run = multiprocessing.get_context("spawn").Process(target=killed_often, args=(str(tmp_path),))
    run.start()
    run.join()
    assert run.exitcode == 0
    assert int((tmp_path / "sizes").read_text()) >= 4  # it was killed in the midst, several times
    found = FeatureStore(tmp_path / "fit.checkpoint", RUN)
    assert_same(found, fill(tmp_path / "undisturbed"))
    assert sorted(found.indices().tolist()) == list(range(N))
    assert sorted(found.skipped) == list(range(7, N, 101))
    assert found.skipped[108] == ("108.jpg", "truncated")
    assert not list((tmp_path / "fit.checkpoint").glob(".*"))  # of what a kill left half-written


def test_a_shard_that_cannot_be_written_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path / "shards", RUN)
    store.append(rows([0, 1]))
    store.flush(1.0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store.append(rows([2]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
            store.flush(1.0)
    assert [file.name for file in (tmp_path / "shards").iterdir()] == ["000001-0.safetensors"]
    assert FeatureStore(tmp_path / "shards", RUN).indices().tolist() == [0, 1]
    store.flush(1.0)  # once there is room
    assert FeatureStore(tmp_path / "shards", RUN).indices().tolist() == [0, 1, 2]
    assert FeatureStore(tmp_path / "shards").seconds == 3
    (tmp_path / "file").touch()
    lost = FeatureStore(tmp_path / "file" / "shards", RUN)
    lost.append(rows([0]))
    with pytest.raises(OutputError, match="cannot be made"):
        lost.flush(0.0)


def test_another_run_is_refused(tmp_path: Path) -> None:
    assert FeatureStore(tmp_path / "shards", RUN).indices().tolist() == []
    assert not (tmp_path / "shards").exists()
    fill(tmp_path / "shards")
    with pytest.raises(
        CamhookError, match=r"another run \(images: 1000 then, 2 now; model: 'resnet18' then, None now\)"
    ):
        FeatureStore(tmp_path / "shards", {"images": 2, "size": (224, 224)})
    store = FeatureStore(tmp_path / "shards")
    store.check_run({"model": "resnet18"})
    with pytest.raises(CamhookError, match=r"model: 'resnet18' then, 'vgg' now"):
        store.check_run({"model": "vgg", "images": 1000})


def test_a_checkpoint_file_of_earlier_versions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    save_file({"done": torch.zeros(3, dtype=torch.uint8)}, path, {"format": "camhook checkpoint 1", "facts": "{}"})
    before = path.read_bytes()
    with pytest.raises(CamhookError, match=r"fit.ckpt is a file, expected a folder .* Earlier versions .*another path"):
        FeatureStore(path, RUN)
    assert path.read_bytes() == before


def test_two_runs_in_one_folder_are_noticed(tmp_path: Path) -> None:
    for rank in range(2):
        store = FeatureStore(tmp_path / str(rank), RUN, rank)
        store.append(rows([rank, 2]))
        store.flush(0.0)
    (tmp_path / "1" / "000001-1.safetensors").rename(tmp_path / "0" / "000001-1.safetensors")
    with pytest.raises(CamhookError, match="An image is in two shards"):
        FeatureStore(tmp_path / "0", RUN).indices()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 100], ids=["empty", "zip", "bytes"])
def test_strange_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "000001-0.safetensors"
    path.write_bytes(content)
    with pytest.raises(CamhookError, match="cannot be read as a camhook features 1"):
        FeatureStore(tmp_path, RUN)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CamhookError, match="a safetensors file of format None, expected 'camhook features 1'"):
        FeatureStore(tmp_path, RUN)
    path.unlink()
    fill(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CamhookError, match="cannot be read"):
        FeatureStore(tmp_path, RUN)
    with pytest.raises(CamhookError, match="cannot be read"):
        read_tensors(tmp_path, "camhook features 1")


def test_tensors_and_facts_go_around(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(1.5, dtype=torch.float64)}
    write_tensors(tmp_path / "file", "kind", tensors, {"fact": ["ü", None]})
    found, facts = read_tensors(tmp_path / "file", "kind")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert facts == {"fact": ["ü", None]}
    assert read_tensors(tmp_path / "file", "kind", ["b"])[0].keys() == {"b"}
    assert load_file(tmp_path / "file").keys() == {"a", "b"}  # any reader of safetensors can read it
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode  # and so can whoever may read


def test_rows_in_memory_are_those_of_shards(tmp_path: Path) -> None:
    memory, chunks, index = FeatureStore(), FeatureStore.of(rows(range(200))), torch.arange(200)
    for part in index.split(70):
        memory.append(rows(part))
    memory.flush(1.0)
    files = FeatureStore(tmp_path / "shards", RUN)
    files.append(rows(index[:150]))
    files.flush(1.0)
    files.append(rows(index[150:]))
    for store in (memory, chunks, files):
        assert store.indices().tolist() == store.column("indices").tolist() == index.tolist()
        assert_same(store, memory)
        assert store.column("targets").tolist() == (index % K).tolist()
    assert (memory.waiting, chunks.waiting, files.waiting) == (200 * C * 8, 0, 50 * C * 8)


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        ranks = Ranks.of_process_group()
        for place in ("shared", f"own{rank}"):  # a folder that all ranks see, and one that only one sees
            for half in range(2):
                store, done = FeatureStore.opened(Path(folder, place), RUN, 12, ranks)
                assert done.sum() == 6 * half
                store.append(rows([6 * half + rank, 6 * half + 2 + rank]))
                store.flush(1.0)
                store.append(rows([6 * half + 4 + rank]))
                if half == 0:
                    store.flush(1.0)
            ranks.wait()
            again, done = FeatureStore.opened(Path(folder, place), RUN, 12, ranks)
            assert done.tolist() == [True] * 10 + [False] * 2
            read = [i for block in again.blocks(again.assigned(ranks)) for i in block.indices.tolist()]
            assert len(read) in (4, 5, 6)
            assert sorted(i for each in ranks.gathered(read) for i in each) == list(range(10))
            found = sorted(i for block in store.gathered(ranks) for i in block.indices.tolist())
            assert found == (list(range(12)) if rank == 0 else [])
            with pytest.raises(CamhookError, match="one rank cannot"):
                ranks.agreed(lambda: fails(rank))
            assert ranks.agreed(lambda: rank + 5, first_only=True) == 5
    finally:
        dist.destroy_process_group()


def fails(rank: int) -> None:
    if rank == 1:
        raise CamhookError("one rank cannot")


def test_ranks_read_each_shard_once(tmp_path: Path) -> None:
    start_processes(one_rank, (2, str(tmp_path)), nprocs=2, start_method="spawn")

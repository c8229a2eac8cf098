"""`camhook explain` of many photos: workers, broken files, resuming after a kill, ranks, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image

import camhook
from camhook.cli import check as checks
from camhook.cli.loading import load_model
from camhook.cli.main import main
from camhook.errors import OutputError
from camhook.folders import explaining, writing
from camhook.folders import photos as photo_records
from camhook.folders.photos import Photo, list_photos, remove_partial_files, stamp
from camhook.folders.writing import Writer, WriterPool

CLASSES = 7


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=CLASSES)
    checks.jitter(model)
    path: Path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def make_photos(folder: Path, count: int, side: int = 60) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{index:03}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 6)


@pytest.fixture
def options(checkpoint: Path, tmp_path: Path) -> list[str | Path]:
    model: list[str | Path] = [
        "--model",
        "test_resnet",
        "--checkpoint",
        checkpoint,
        "--num-classes",
        str(CLASSES),
        "--device",
        "cpu",
    ]
    return [*model, "--output", tmp_path / "out", "--batch-size", "2", "--workers", "0"]


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time of change and its number on the disk, which a file that takes its place lacks."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def manifests(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "camhook", *map(str, arguments)]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_files_hold_what_a_plain_call_gives(
    workers: str, photos: Path, options: list[str | Path], checkpoint: Path, tmp_path: Path
) -> None:
    result = run("explain", photos, *options, "--workers", workers, "--topk", "2")
    assert result.exit_code == 0, result.output
    assert "Explained 6 of 6 photos" in result.output
    cam = camhook.wrap(load_model("test_resnet", str(checkpoint), CLASSES))
    files = sorted(photos.iterdir())
    expected = cam(files, topk=2)
    for index, file in enumerate(files):
        with np.load(tmp_path / "out" / f"{file.stem}.npz") as arrays:
            assert np.array_equal(arrays["target"], expected.target[index].numpy())
            np.testing.assert_allclose(arrays["maps"], expected.maps[index].numpy(), atol=1e-5)
            np.testing.assert_allclose(arrays["offset"], expected.offset[index].numpy(), atol=1e-5)
        found = manifests(tmp_path / "out")[file.stem]
        assert found["photo_size"] == list(expected.geometries[index].photo_size)
        assert found["input_offset"] == list(expected.geometries[index].offset)
        assert found["photo"] == {"path": str(file), "bytes": file.stat().st_size, "mtime_ns": file.stat().st_mtime_ns}
        for position, name in enumerate(found["files"][:-1]):
            drawn = np.asarray(Image.open(tmp_path / "out" / name), dtype=int)
            overlay = np.asarray(expected.overlay(index, int(expected.target[index, position])), dtype=int)
            assert drawn.shape == overlay.shape
            assert np.abs(drawn - overlay).max() <= 1
        assert f"{file.stem}: {found['classes'][0]['name']}: score" in result.output


def test_raw_maps_only(photos: Path, options: list[str | Path], tmp_path: Path) -> None:
    assert run("explain", photos, *options, "--no-overlays").exit_code == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".npz", ".json"}
    assert run("explain", photos, *options).exit_code == 0  # what is written is another thing: done again
    assert len(list((tmp_path / "out").glob("*.png"))) == 6


def test_a_rerun_does_nothing_twice(photos: Path, options: list[str | Path], tmp_path: Path) -> None:
    assert run("explain", photos, *options).exit_code == 0
    before = written(tmp_path / "out")
    result = run("explain", photos, *options)
    assert result.exit_code == 0
    assert "Explained 0 of 6 photos, 6 were done already" in result.output
    assert written(tmp_path / "out") == before


@pytest.mark.parametrize(
    "other",
    [["--target", "3"], ["--topk", "2"], ["--rivals"], ["--no-overlays"]],
    ids=["target", "topk", "rivals", "overlays"],
)
def test_other_options_do_all_photos_again(
    other: list[str], photos: Path, options: list[str | Path], tmp_path: Path
) -> None:
    run("explain", photos, *options)
    before = written(tmp_path / "out")
    result = run("explain", photos, *options, *other)
    assert "Explained 6 of 6 photos; wrote" in result.output
    assert all(written(tmp_path / "out")[name] != before[name] for name in before if name.endswith(".json"))


def test_other_weights_do_all_photos_again(photos: Path, options: list[str | Path], checkpoint: Path) -> None:
    run("explain", photos, *options)
    weights = torch.load(checkpoint, weights_only=True)
    weights["fc.bias"][0] += 1
    other = checkpoint.with_name("other.pth")
    torch.save(weights, other)
    assert "Explained 6 of 6 photos; wrote" in run("explain", photos, *options, "--checkpoint", other).output


def test_a_changed_photo_and_a_removed_file_are_done_again(
    photos: Path, options: list[str | Path], tmp_path: Path
) -> None:
    run("explain", photos, *options)
    before = written(tmp_path / "out")
    os.utime(photos / "photo001.png", (1, 1))
    (tmp_path / "out" / "photo004.npz").unlink()
    result = run("explain", photos, *options)
    assert "Explained 2 of 6 photos, 4 were done already" in result.output
    after = written(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {
        name for name in before if name.startswith(("photo001", "photo004"))
    }


def test_a_stale_manifest_goes_before_other_files_change(
    photos: Path, options: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("explain", photos / "photo000.png", *options)

    def dies(*_: Any, **__: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("camhook.results.saving.save_png", dies)
    result = run("explain", photos / "photo000.png", *options, "--target", "3")
    assert result.exit_code == 1
    assert "the disk is full" in result.output
    assert not manifests(tmp_path / "out")


def broken_photos(folder: Path) -> dict[str, str]:
    """Make files that cannot be read; for each what will be said of it."""
    whole = (folder / "photo000.png").read_bytes()
    Image.open(folder / "photo000.png").save(folder / "whole.jpg")
    (folder / "short.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:700])
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no photo")
    (folder / "locked.png").write_bytes(whole)
    (folder / "locked.png").chmod(0)
    reasons = {"short.jpg": "cut short", "cut.png": "cut short", "empty.png": "0 bytes", "text.jpg": "not an image"}
    return reasons if os.access(folder / "locked.png", os.R_OK) else reasons | {"locked.png": "Permission denied"}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_photos_are_listed_and_tried_again(
    workers: str, photos: Path, options: list[str | Path], tmp_path: Path
) -> None:
    reasons = broken_photos(photos)
    arguments = ["explain", photos, tmp_path / "vanished.png", *options, "--workers", workers, "--no-overlays"]
    reasons["vanished.png"] = "there is no such file"
    for _ in range(2):
        result = run(*arguments)
        assert result.exit_code == 1
        listed = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
        assert listed[0].startswith("# camhook")
        assert len(listed) == 1 + len(reasons)
        for name, reason in reasons.items():
            assert any(name in line and reason in line for line in listed[1:]), (name, listed)
            assert name in result.output.split("skipped:")[1]
    assert "already" in result.output
    good = 7 + ("locked.png" not in reasons)
    assert len(manifests(tmp_path / "out")) == good
    assert f"Explained 0 of {good + len(reasons)} photos, {good} were done already" in result.output


def test_mended_photos_are_no_longer_listed(photos: Path, options: list[str | Path], tmp_path: Path) -> None:
    (photos / "photo003.png").write_bytes(b"no photo")
    assert run("explain", photos, *options).exit_code == 1
    make_photos(photos, 6)
    assert run("explain", photos, *options).exit_code == 0
    assert not (tmp_path / "out" / "skipped.txt").exists()
    assert set(manifests(tmp_path / "out")) == {f"photo{index:03}" for index in range(6)}


def test_a_list_that_camhook_did_not_write_is_kept(photos: Path, options: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "skipped.txt").write_text("mine")
    result = run("explain", photos, *options)
    assert result.exit_code == 1
    assert "camhook did not write it" in result.output
    assert (tmp_path / "out" / "skipped.txt").read_text() == "mine"


def test_a_photo_that_changes_meanwhile_is_skipped(photos: Path, tmp_path: Path, checkpoint: Path) -> None:
    cam = camhook.wrap(load_model("test_resnet", str(checkpoint), CLASSES))
    photo = Photo(photos / "photo000.png", "photo000")
    with WriterPool(Writer(tmp_path, {}, overlays=True, overwrite=False), 0) as writers:
        seen = stamp(photo.path)
        os.utime(photo.path, (1, 1))
        (changed,) = writers.write(cam(photo.path), [photo], [seen])
        photo.path.unlink()
        (gone,) = writers.write(cam(photos / "photo001.png"), [photo], [seen])
    assert "changed or removed" in changed.reason
    assert "no such file" in gone.reason
    assert not manifests(tmp_path)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


def gone(pids: list[int], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def stopped_half_way(
    arguments: list[str | Path], out: Path, how: signal.Signals, done: int
) -> tuple[int, str, list[int]]:
    """Run, stop when this many photos are done; return the exit status, what was said and the workers there were."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs pass on that it be ignored
    try:
        process = subprocess.Popen(command(*arguments), **pipes, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        wait_until(lambda: len(list(out.glob("*.json"))) >= done, process)
        workers = children(process.pid)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # a terminal tells all of them
        else:
            process.send_signal(how)
        said = process.communicate(timeout=60)[0]
    return process.returncode, said, workers


needs_ps = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


@needs_ps
def test_killed_half_way_and_resumed(options: list[str | Path], tmp_path: Path) -> None:
    out, photos = tmp_path / "out", make_photos(tmp_path / "photos", 40, side=300)
    arguments = ["explain", photos, *options, "--workers", "1"]
    status, _, workers = stopped_half_way(arguments, out, signal.SIGKILL, done=5)
    assert status == -signal.SIGKILL
    assert len(workers) == 2
    assert gone(workers)
    half = manifests(out)
    assert 5 <= len(half) < 40
    for found in half.values():  # what counts as done is whole
        for name in found["files"]:
            if name.endswith(".png"):
                Image.open(out / name).load()
            else:
                assert np.isfinite(np.load(out / name)["maps"]).all()
    (out / ".photo039.npz.12345.part").write_bytes(b"half")
    (out / ".of-another.npz.12345.part").write_bytes(b"half")
    before = written(out)
    result = run(*arguments[:-1], "0")
    assert result.exit_code == 0, result.output
    assert f"Explained {40 - len(half)} of 40 photos, {len(half)} were done already" in result.output
    after = written(out)
    for name, found in half.items():
        assert all(after[file] == before[file] for file in [f"{name}.json", *found["files"]])
    assert len(manifests(out)) == 40
    assert [path.name for path in out.glob(".*")] == [".of-another.npz.12345.part"]


@needs_ps
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(
    how: signal.Signals, options: list[str | Path], tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", 80, side=300)
    arguments = ["explain", photos, *options, "--workers", "1"]
    status, said, workers = stopped_half_way(arguments, tmp_path / "out", how, done=3)
    assert status == 130
    assert "Stopped. The same command goes on" in said
    assert "Traceback" not in said
    assert len(workers) == 2
    assert gone(workers, 2)
    count = len(manifests(tmp_path / "out"))
    assert 3 <= count < 80
    assert not list((tmp_path / "out").glob(".*"))


def in_rank(rank: int, world: int, *arguments: str | Path) -> subprocess.Popen[str]:
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    return subprocess.Popen(
        command(*arguments),
        env=os.environ | ranks,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_ranks_share_photos_of_the_same_name(options: list[str | Path], tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        make_photos(tmp_path / "photos" / folder, 3)
    (tmp_path / "photos" / "b" / "photo001.png").write_bytes(b"no photo")
    out = tmp_path / "out"
    out.mkdir()
    (out / "skipped.txt").write_text(f"{photo_records._HEADING}\n")
    ranks = [in_rank(rank, 2, "explain", tmp_path / "photos", *options, "--no-overlays") for rank in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 0], said  # b/photo001 is the fifth, the first rank's
    assert "Rank 0 of 2: Explained 4 of 5 photos" in said[0]
    assert "Rank 1 of 2: Explained 4 of 4 photos" in said[1]
    assert "b/photo001.png" in (out / "skipped-0-of-2.txt").read_text()
    assert [path.name for path in out.glob("skipped*")] == ["skipped-0-of-2.txt"]
    names = {f"{folder}-photo{index:03}" for folder in "abc" for index in range(3)} - {"b-photo001"}
    assert set(manifests(out)) == names
    shown = [{line.split(":")[0] for line in each.splitlines() if ": class" in line} for each in said]
    assert not shown[0] & shown[1]
    assert shown[0] | shown[1] == names
    result = run("explain", tmp_path / "photos", *options, "--no-overlays")  # one process goes on from two
    assert result.exit_code == 1
    assert "Explained 0 of 9 photos, 8 were done already" in result.output
    assert [path.name for path in out.glob("skipped*")] == ["skipped.txt"]


@pytest.mark.slow
def test_torchrun_lets_every_rank_finish(options: list[str | Path], tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 8)
    for index in range(1, 8, 2):  # the second rank's take longer
        make_photos(tmp_path / "large", 1, side=1500)
        (tmp_path / "large" / "photo000.png").replace(photos / f"photo{index:03}.png")
    (photos / "photo000.png").write_bytes(b"no photo")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "camhook"]
    arguments = map(str, ["explain", photos, *options])
    found = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 1
    assert "Rank 0 of 2: Explained 3 of 4 photos" in found.stdout
    assert "Rank 1 of 2: Explained 4 of 4 photos" in found.stdout
    assert len(manifests(tmp_path / "out")) == 7
    assert "photo000.png" in (tmp_path / "out" / "skipped-0-of-2.txt").read_text()


def test_names_are_unique_and_photos_come_once(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_photos(tmp_path / folder, 2)
    found = list_photos([tmp_path, tmp_path / "a" / "photo000.png"])
    assert [photo.name for photo in found] == ["a-photo000", "a-photo001", "b-photo000", "b-photo001"]


def test_remains_of_other_ranks_photos_stay(tmp_path: Path) -> None:
    for name in (".a.npz.1.part", ".a.3-cat.png.1.part", ".a.json.1.part", ".b.npz.1.part", ".a.txt.1.part"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path, [Photo(Path("a.jpg"), "a")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.txt.1.part", ".b.npz.1.part"]


class Deadly(Writer):
    """Takes its process down, as want of memory would."""

    def __call__(self, *_: Any) -> Any:
        os._exit(9)


def test_a_writing_process_that_dies_is_an_error(
    photos: Path, options: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camhook.folders.writing.Writer", Deadly)
    result = run("explain", photos, *options, "--workers", "1")
    assert result.exit_code == 1
    assert "A process that draws and writes died" in result.output
    assert "the same command goes on" in result.output


def test_a_reading_process_that_dies_is_an_error(
    photos: Path, options: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camhook.folders.photos.stamp", lambda _: os._exit(9))
    result = run("explain", photos, *options, "--workers", "1")
    assert result.exit_code == 1
    assert "A process that reads photos died" in result.output


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("place", ["camhook.folders.photos.stamp", "camhook.folders.writing.save_one"])
def test_an_error_that_is_not_about_a_photo_surfaces(
    workers: str, place: str, photos: Path, options: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr(place, faulty)
    result = run("explain", photos, *options, "--workers", workers)
    assert isinstance(result.exception, ZeroDivisionError)
    assert "a fault of the program" in str(result.exception)


def test_files_that_camhook_did_not_write_stop_the_run(photos: Path, options: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo002.npz").write_text("mine")
    result = run("explain", photos, *options, "--workers", "1")
    assert result.exit_code == 1
    assert "photo002.npz is there already and camhook did not write it" in result.output
    assert (tmp_path / "out" / "photo002.npz").read_text() == "mine"
    assert run("explain", photos, *options, "--overwrite").exit_code == 0


def test_no_more_tasks_wait_than_a_few(
    photos: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cam = camhook.wrap(load_model("test_resnet", str(checkpoint), CLASSES))
    photo = Photo(photos / "photo000.png", "photo000")
    result, waiting = cam([photo.path] * 30), []
    with WriterPool(Writer(tmp_path, {}, overlays=False, overwrite=False), 1) as writers:
        assert writers._pool is not None
        submit = writers._pool.submit

        def counted(*task: Any) -> Any:
            waiting.append(len(writers._waiting))
            return submit(*task)

        monkeypatch.setattr(writers._pool, "submit", counted)
        written = [*writers.write(result, [photo] * 30, [stamp(photo.path)] * 30), *writers.finish()]
    assert len(written) == len(waiting) == 30
    assert max(waiting) < 4


def test_many_photos_print_no_caption_each(
    photos: Path, options: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "_CAPTIONED", 5)
    assert "score" not in run("explain", photos, *options).output


def test_what_goes_to_the_writer_is_small() -> None:
    model: Any = timm.create_model("test_resnet")
    result = camhook.wrap(model)(torch.zeros(4, 3, 160, 160))
    assert len(writing._packed(result[1])) < 20_000


def test_one_file_wants_a_picture(photos: Path, options: list[str | Path], tmp_path: Path) -> None:
    result = run("explain", photos / "photo000.png", *options, "--output", tmp_path / "one.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "one.png").is_file()
    result = run("explain", photos / "photo000.png", *options, "--output", tmp_path / "one.png", "--no-overlays")
    assert "leaves no picture" in result.output

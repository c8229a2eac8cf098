"""A fit that is killed, interrupted, given damaged files or shared by ranks ends in the probe of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

import camhook
from camhook import CamhookError, ImageError
from camhook.cli.main import main
from camhook.fitting.probe import Probe
from camhook.fitting.reports import FitReport
from camhook.fitting.shards import FeatureStore

COUNT, SIDE = 160, 64

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs processes that can be killed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real handwriting as files, a folder a class."""
    root, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for number in range(COUNT):
        place = root / str(digits.target[number])
        place.mkdir(exist_ok=True)
        pixels = Image.fromarray((digits.images[number] * 15).astype(np.uint8)).resize((SIDE, SIDE))
        pixels.save(place / f"{number}.png")
    return root


def fit(data: Any, output: Path | None = None, **options: Any) -> tuple[FitReport, Probe]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cam = camhook.wrap(timm.create_model("test_resnet", num_classes=0), input_size=(SIDE, SIDE))
    options = {"batch_size": 4, "progress": False, "checkpoint_every": 0.0, "penalty": 1e-2, **options}
    report = cam.fit(data, **options)
    assert cam.probe is not None
    if output is not None:
        cam.probe.save(output)
    return report, cam.probe


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[FitReport, Probe]:
    return fit(folder)


def assert_same(found: tuple[FitReport, Probe], expected: tuple[FitReport, Probe], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found[1].weight, expected[1].weight, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1].bias, expected[1].bias, rtol=tolerance, atol=tolerance)
    for name in ("fitted", "class_counts", "skipped"):
        assert getattr(found[0], name) == getattr(expected[0], name), name
    assert found[0].fidelity.images == expected[0].fidelity.images
    assert found[0].fidelity.top1 == expected[0].fidelity.top1


def assert_as_close(found: Probe, expected: Probe) -> None:
    """Ranks and one process differ by less than a millionth of the largest weight."""
    difference = torch.cat([found.weight - expected.weight, (found.bias - expected.bias)[:, None]], 1).abs().max()
    assert difference <= 1e-6 * expected.weight.abs().max()


def done_in(checkpoint: Path) -> int:
    return len(FeatureStore(checkpoint).indices())


def in_a_process(target: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("forkserver")  # children start clean, and torch is imported once for all
    context.set_forkserver_preload(
        ["camhook.fitting.fit", "camhook.cli.main", "click.testing", "pytest", "sklearn.datasets", "timm"]
    )
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def child(folder: Path, checkpoint: Path, options: dict[str, Any]) -> None:
    fit(folder, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_killed_at_any_moment(folder: Path, tmp_path: Path, solver: str) -> None:
    expected = fit(folder, solver=solver, penalty=1.0)
    checkpoint, moments = tmp_path / "fit.ckpt", random.Random(solver)
    options: dict[str, Any] = {"solver": solver, "penalty": 1.0}
    done = [0]
    for _ in range(3):
        process = in_a_process(child, folder, checkpoint, options)
        while process.is_alive() and (not checkpoint.exists() or done_in(checkpoint) == done[-1]):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        done.append(done_in(checkpoint))
    assert done == sorted(done)
    assert 0 < done[1] < COUNT
    found = fit(folder, checkpoint=checkpoint, **options)
    assert_same(found, expected, 1e-6 if solver == "ridge" else 1e-4)
    assert done_in(checkpoint) == COUNT
    assert_same(fit(folder, checkpoint=checkpoint, **options), found)  # nothing is left to do


class Pressing(torch.utils.data.Dataset[Any]):
    """Digits; while one of them is read, Ctrl-C is pressed."""

    def __init__(self, folder: Path, when: int) -> None:
        self.files, self.when = sorted(folder.rglob("*.png")), when

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        if index == self.when:
            os.kill(os.getpid(), signal.SIGINT)
        return self.files[index], int(self.files[index].parent.name)


def test_ctrl_c_leaves_a_usable_checkpoint(folder: Path, tmp_path: Path) -> None:
    checkpoint, handler = tmp_path / "fit.ckpt", signal.getsignal(signal.SIGINT)
    expected = fit(Pressing(folder, -1), num_classes=10)
    with pytest.raises(KeyboardInterrupt):
        fit(Pressing(folder, 101), num_classes=10, checkpoint=checkpoint, checkpoint_every=1000.0)
    assert signal.getsignal(signal.SIGINT) is handler
    assert done_in(checkpoint) == 104  # to the end of the batch
    assert [file.name for file in tmp_path.iterdir()] == ["fit.ckpt"]
    assert_same(fit(Pressing(folder, -1), num_classes=10, checkpoint=checkpoint), expected)
    with pytest.raises(KeyboardInterrupt):
        fit(Pressing(folder, 30), num_classes=10)


def test_a_checkpoint_of_another_run(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    fit(folder, checkpoint=checkpoint)
    assert fit(folder, checkpoint=checkpoint, penalty=5.0)[0].penalty == 5  # another solve of the same features
    for same in ({"class_weight": "balanced"}, {"seed": 1}, {"solver": "logistic"}):
        assert_same(fit(folder, checkpoint=checkpoint, **same), fit(folder, **same))
    with pytest.raises(CamhookError, match=r"is of another run \(data: .*another folder"):
        fit(Pressing(folder, -1), checkpoint=checkpoint, num_classes=10)
    with pytest.raises(CamhookError, match=r"is of another run \(autocast: 'None' then, 'torch.bfloat16' now\)"):
        fit(folder, checkpoint=checkpoint, autocast=torch.bfloat16)
    (checkpoint / "000001-0.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CamhookError, match="cannot be read as a camhook features"):
        fit(folder, checkpoint=checkpoint)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """The folder, with files in it that are no images."""
    root = tmp_path / "damaged"
    for file in folder.rglob("*.png"):
        place = root / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(file)
    whole = next((folder / "3").iterdir()).read_bytes()
    (root / "0" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "1" / "empty.jpg").touch()
    (root / "2" / "text.png").write_text("this is no image")
    (root / "3" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "4" / "notes.txt").write_text("left out by its name")
    return root


def test_unreadable_images_are_skipped_and_listed(damaged: Path, tmp_path: Path, undisturbed: Any) -> None:
    report, _ = fit(damaged, checkpoint=tmp_path / "fit.ckpt", num_workers=1)
    again, _ = fit(damaged, checkpoint=tmp_path / "fit.ckpt")
    assert report.skipped == again.skipped
    files = [file for file, _ in report.skipped]
    assert [file.split(os.sep) for file in files] == [["0", "cut.png"], ["1", "empty.jpg"], ["2", "text.png"]]
    reasons = [reason for _, reason in report.skipped]
    assert "cut short" in reasons[0]
    assert "0 bytes" in reasons[1]
    assert "not an image" in reasons[2]
    assert report.fitted + report.fidelity.images == COUNT
    assert "skipped            3 of 163" in str(report)


def test_too_many_unreadable_images_stop_the_run(damaged: Path) -> None:
    with pytest.raises(ImageError, match=r"(?s)2 of 163 images could not be read, and at most 0.01 .*cut.png: .*empty"):
        fit(damaged, max_skipped=0.01)
    with pytest.raises(ImageError, match=r"1 of 163 images could not be read, and at most 0 "):
        fit(damaged, max_skipped=0)
    for file in damaged.rglob("*.png"):
        file.unlink()
        file.write_bytes(b"")
    with pytest.raises(CamhookError, match=r"none of them could be read. The first: .*0 bytes"):
        fit(damaged)


def test_unreadable_images_of_a_stream(damaged: Path) -> None:
    files = [f for f in sorted(damaged.rglob("*.*g")) if f.exists()]
    report, _ = fit(((str(f), int(f.parent.name)) for f in files), num_classes=10)
    assert len(report.skipped) == 3
    assert report.fitted + report.fidelity.images == COUNT
    with pytest.raises(ImageError, match="3 of 100 images could not be read"):
        fit(((str(f), int(f.parent.name)) for f in files), num_classes=10, max_skipped=0.001)


def ranked(rank: int, world: int, place: Path, data: Any, options: dict[str, Any]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=world)
    try:
        fit(list(data) if isinstance(data, list) else data, place / f"probe{rank}", **options)
    except CamhookError as error:
        (place / f"error{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()


def on_two_ranks(place: Path, data: Any, **options: Any) -> None:
    processes = [in_a_process(ranked, rank, 2, place, data, options) for rank in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_two_ranks_give_the_probe_of_one(folder: Path, tmp_path: Path, solver: str) -> None:
    options: dict[str, Any] = {"solver": solver, "batch_size": 7, "capacity": 10}
    if solver == "logistic":  # so ill-conditioned here that a last digit of a feature shows: batches of one size
        options["batch_size"] = 8
    expected = fit(folder, **options)[1]
    on_two_ranks(tmp_path, folder, **options)
    for rank in range(2):
        assert_as_close(Probe.load(tmp_path / f"probe{rank}"), expected)
        assert Probe.load(tmp_path / f"probe{rank}").info.fidelity["images"] == 10


def test_two_ranks_go_on_where_a_single_process_was_interrupted(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    expected = fit(Pressing(folder, -1), num_classes=10)[1]
    with pytest.raises(KeyboardInterrupt):
        fit(Pressing(folder, 101), num_classes=10, checkpoint=checkpoint)
    on_two_ranks(tmp_path, Pressing(folder, -1), num_classes=10, checkpoint=checkpoint)
    assert done_in(checkpoint) == COUNT
    for rank in range(2):
        assert_as_close(Probe.load(tmp_path / f"probe{rank}"), expected)
    report, probe = fit(Pressing(folder, -1), num_classes=10, checkpoint=checkpoint)  # and one goes on from two
    assert_as_close(probe, expected)
    assert report.fitted + report.fidelity.images == COUNT


def test_two_ranks_share_a_stream(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    parts = [files[i : i + 9] for i in range(0, COUNT, 9)]
    batches = [([str(file) for file in part], [int(file.parent.name) for file in part]) for part in parts]
    expected = fit(batches, num_classes=10)[1]
    on_two_ranks(tmp_path, batches, num_classes=10)
    assert_as_close(Probe.load(tmp_path / "probe1"), expected)


class Unlisted(torch.utils.data.Dataset[Any]):
    """Pairs whose labels are not known before they are read."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


def test_a_rank_that_fails_tells_the_other(damaged: Path, tmp_path: Path) -> None:
    files = [(str(f), int(f.parent.name)) for f in sorted(damaged.rglob("*.png"), key=lambda f: f.name) if f.exists()]
    files[101] = (files[101][0], 99)
    on_two_ranks(tmp_path, Unlisted(files), num_classes=10)
    said = [(tmp_path / f"error{rank}").read_text() for rank in range(2)]
    assert any("expected integers from 0 to 9" in text for text in said)
    assert any("Another rank failed" in text for text in said)


def test_torchrun(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    arguments = ["fit", str(folder), "--model", "test_vit", "--num-classes", "0", "--checkpoint", str(weights)]
    arguments += ["--penalty", "0.01", "--no-progress", "--device", "cpu", "--batch-size", "16"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "camhook"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*torchrun, *arguments, "--output", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote") == 1
    assert CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "one")]).exit_code == 0
    two, one = (Probe.load(tmp_path / name) for name in ("two", "one"))
    assert_as_close(two, one)
    assert two.info.fidelity == pytest.approx(one.info.fidelity, abs=1e-6)

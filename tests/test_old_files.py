"""Files that camhook 0.1.0 wrote: they still load, still count as camhook's own, and runs go on from them.

How they were made is in ``tests/data/old/make_old_files.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import camhook

sys.path.append(str(Path(__file__).parent / "data" / "old"))

from make_old_files import (
    COMPARE,
    EXPLAIN,
    EXPORT,
    FIT,
    MODEL,
    Net,
    command,
    filled,
    small_image,
    timm_model,
    write_checkpoint,
    write_classes,
    write_photos,
)

OLD = Path(__file__).parent / "data" / "old"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command(), [str(argument) for argument in arguments])


def assert_close(found: Tensor, stored: Any) -> None:
    expected = torch.from_numpy(np.asarray(stored))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def keys(value: Any) -> Any:
    """The names in JSON, without the values."""
    if isinstance(value, dict):
        return {name: keys(each) for name, each in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old files, to be written over."""
    return Path(shutil.copytree(OLD, tmp_path / "old", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")[0]


def make_foreign(path: Path) -> None:
    """Put in a file's place one that somebody else wrote."""
    path.unlink(missing_ok=True)
    if path.suffix == ".png":
        shutil.copy(write_photos(path.parent / "theirs", 1)[0], path)
    elif path.suffix == ".npz":
        np.savez(path, maps=np.zeros(3))
    elif path.suffix == ".pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/version", "1")
    else:
        path.write_text('{"made_by": "somebody else"}')


@pytest.mark.parametrize("given", ["probe.safetensors", "probe_pretrained"])
def test_a_probe_loads_and_explains_as_before(given: str, photo: Path) -> None:
    probe: Any = OLD / given
    if probe.is_dir():
        fitted: Any = camhook.wrap(timm_model(0), probe=OLD / "probe.safetensors").probe
        probe = type(fitted).from_pretrained(probe)
    cam = camhook.wrap(timm_model(0), probe=probe)
    result = cam(photo, "all")
    with np.load(OLD / "probe_expected.npz") as expected:
        for part in ("maps", "offset", "scores", "logits"):
            assert_close(getattr(result, part), expected[part])
    assert result.explains == "probe"
    assert [result.label(0, j) for j in range(3)] == ["class0", "class1", "class2"]
    assert cam.probe is not None
    assert cam.probe.info.fidelity["top1"] == pytest.approx(0.8)


def test_a_probe_of_other_weights_is_refused() -> None:
    model = timm_model(0)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(camhook.ProbeMismatchError, match="fingerprint"):
        camhook.wrap(model, probe=OLD / "probe.safetensors")


def test_a_probe_is_saved_over_an_old_one_but_over_no_other_file(old: Path) -> None:
    probe = camhook.wrap(timm_model(0), probe=old / "probe.safetensors").probe
    assert probe is not None
    probe.save(old / "probe.safetensors")
    make_foreign(old / "probe.safetensors")
    with pytest.raises(camhook.OutputError, match="is there already"):
        probe.save(old / "probe.safetensors")


def test_an_old_results_maps_are_those_of_today(photo: Path) -> None:
    result = camhook.wrap(timm_model())(photo, topk=2)
    with np.load(OLD / "result" / "photo0.npz") as stored:
        assert_close(result.maps[0], stored["maps"])
        assert_close(result.scores[0], stored["scores"])
        assert result.target[0].tolist() == stored["target"].tolist()


def test_a_result_is_saved_over_an_old_one_under_the_same_names(old: Path, photo: Path) -> None:
    cam = camhook.wrap(timm_model())
    before = json.loads((old / "result" / "photo0.json").read_text())
    there = {file.name for file in (old / "result").iterdir()}
    cam(photo, topk=2).save(old / "result")
    cam(photo).save(old / "result" / "overlay.png")
    after = json.loads((old / "result" / "photo0.json").read_text())
    assert {file.name for file in (old / "result").iterdir()} == there
    assert keys(after) == keys(before)
    for name in ("software", "image", "photo_size", "input_size", "model", "head", "target_layer", "unit", "files"):
        assert after[name] == before[name]


@pytest.mark.parametrize("name", ["photo0.1-class-1.png", "photo0.npz", "photo0.json", "overlay.png"])
def test_a_result_is_not_saved_over_a_file_of_somebody_else(name: str, old: Path, photo: Path) -> None:
    make_foreign(old / "result" / name)
    result = camhook.wrap(timm_model())(photo)
    with pytest.raises(camhook.OutputError, match="camhook did not write it"):
        result.save(old / "result" / "overlay.png" if name == "overlay.png" else old / "result")


@pytest.fixture
def folder(old: Path, photo: Path) -> Path:
    """An old run's output folder, whose photos are those in the test's own folder."""
    for file in (old / "folder").glob("*.json"):
        manifest = json.loads(file.read_text())
        path = photo.with_name(f"{file.stem}.png")
        found = path.stat()
        seen = {"path": os.path.abspath(path), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
        assert set(manifest["photo"]) == set(seen)
        file.write_text(json.dumps(manifest | {"photo": seen}))
    return old / "folder"


def explain(photos: Path, output: Path, *options: str) -> Result:
    checkpoint = write_checkpoint(photos.parent / "weights.pth")
    return run("explain", photos, *MODEL, *EXPLAIN, "--checkpoint", checkpoint, "--output", output, *options)


def test_an_old_folder_run_goes_on(folder: Path, photo: Path) -> None:
    shutil.copy(photo, photo.with_name("new.png"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    found = explain(photo.parent, folder)
    assert found.exit_code == 0, found.output
    assert "Explained 1 of 4 photos, 3 were done already" in found.output
    del before["skipped.txt"]  # the broken photo is gone, and so is the list that named it
    assert not (folder / "skipped.txt").exists()
    assert {name: (folder / name).read_bytes() for name in before} == before
    new, old = (json.loads((folder / name).read_text()) for name in ("new.json", "photo0.json"))
    assert keys(new) == keys(old)
    assert new["settings"] == old["settings"]


def test_an_old_folder_run_is_done_again_with_other_settings(folder: Path, photo: Path) -> None:
    found = explain(photo.parent, folder, "--topk", "1")
    assert "Explained 3 of 3 photos;" in found.output


def test_a_folder_run_stops_at_a_list_of_somebody_else(folder: Path, photo: Path) -> None:
    make_foreign(folder / "skipped.txt")
    found = explain(photo.parent, folder)
    assert found.exit_code == 1
    assert "camhook did not write it" in found.output


def fit(photos: Path, output: Path) -> Result:
    checkpoint = write_checkpoint(output / "encoder.pth", 0)
    known = {option for each in command().commands["fit"].params for option in each.opts}
    weights = "--weights" if "--weights" in known else "--checkpoint"  # renamed, as the other commands have it
    files: list[str | Path] = ["--output", output / "probe.safetensors", "--report", output / "fit_report.json"]
    return run("fit", photos, *FIT, weights, checkpoint, *files, "--figure", output / "fit_figure.png", "--no-progress")


def test_a_fit_is_written_over_an_old_one_and_says_the_same(old: Path, tmp_path: Path) -> None:
    found = fit(write_classes(tmp_path / "classes"), old)
    assert found.exit_code == 0, found.output
    before, after = (json.loads((root / "fit_report.json").read_text()) for root in (OLD, old))
    assert keys(after) == keys(before)
    same = ("software", "model", "target_layer", "pooling", "solver", "num_classes", "num_features", "penalty")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert (after["fitted"], after["fidelity"]["top1"]) == (before["fitted"], before["fidelity"]["top1"])
    probes = [camhook.wrap(timm_model(0), probe=root / "probe.safetensors").probe for root in (OLD, old)]
    assert probes[0] is not None
    assert probes[1] is not None
    assert_close(probes[1].weight, probes[0].weight)
    assert replace(probes[1].info, fidelity={}) == replace(probes[0].info, fidelity={})
    assert probes[1].info.fidelity == pytest.approx(probes[0].info.fidelity)


@pytest.mark.parametrize("name", ["fit_report.json", "fit_figure.png"])
def test_a_fit_is_not_written_over_a_file_of_somebody_else(name: str, old: Path, tmp_path: Path) -> None:
    make_foreign(old / name)
    found = fit(write_classes(tmp_path / "classes"), old)
    assert found.exit_code == 1
    assert "camhook did not write it" in found.output


def old_metadata(name: str) -> Any:
    if name.endswith(".pt2"):
        with zipfile.ZipFile(OLD / name) as archive:
            return json.loads(archive.read("archive/extra/camhook"))
    onnx = pytest.importorskip("onnx")
    return json.loads({prop.key: prop.value for prop in onnx.load(OLD / name).metadata_props}["camhook"])


@pytest.mark.parametrize("name", ["exported.onnx", "exported.pt2"])
def test_an_exported_file_says_how_to_run_it_in_the_same_words(name: str, old: Path) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxscript")
    cam = camhook.wrap(filled(Net()), input_size=(32, 32))
    before = old_metadata(name)
    cam.export(old / name, **EXPORT)  # the old file does not stand in the way
    if name.endswith(".pt2"):
        extra = {"camhook": ""}
        torch.export.load(str(old / name), extra_files=extra)
        after = json.loads(extra["camhook"])
    else:
        import onnx

        after = json.loads({prop.key: prop.value for prop in onnx.load(old / name).metadata_props}["camhook"])
    assert keys(after) == keys(before)
    for key in ("software", "head", "classes", "class_names", "preprocessing", "unit"):
        assert after[key] == before[key]
    rounding, same = "check_error", {key: after["explains"][key] for key in before["explains"]}
    assert same | {rounding: 0} == before["explains"] | {rounding: 0}


@pytest.mark.parametrize("name", ["exported.onnx", "exported.pt2"])
def test_a_model_is_not_exported_over_a_file_of_somebody_else(name: str, old: Path) -> None:
    make_foreign(old / name)
    cam = camhook.wrap(filled(Net()), input_size=(32, 32))
    with pytest.raises(camhook.OutputError, match="camhook did not write it"):
        cam.export(old / name, **EXPORT)


def test_an_exported_file_gives_the_maps_of_today() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(OLD / "exported.onnx"), providers=["CPUExecutionProvider"])
    logits, maps = session.run(None, {"images": small_image().numpy()})
    result = camhook.wrap(filled(Net()), input_size=(32, 32))(small_image(), [EXPORT["target"]])
    assert_close(result.logits, logits)
    assert_close(result.maps, maps)
    with np.load(OLD / "exported_expected.npz") as expected:
        assert_close(result.logits, expected["logits"])
        assert_close(result.maps, expected["maps"])


def test_a_comparison_is_saved_over_an_old_one_and_says_the_same(old: Path, tmp_path: Path) -> None:
    found = camhook.compare(camhook.wrap(timm_model()), write_photos(tmp_path / "photos")[:2], **COMPARE)
    found.save(old / "comparison")
    before, after = (json.loads((root / "comparison" / "comparison.json").read_text()) for root in (OLD, old))
    worded = ("settings", "versions")  # rows for the page, in words that may be chosen better
    assert {name: keys(each) for name, each in after.items() if name not in worded} == {
        name: keys(each) for name, each in before.items() if name not in worded
    }
    assert len(after["settings"]) == len(before["settings"])
    for name, method in before["methods"].items():
        for metric, values in method["values"].items():
            assert after["methods"][name]["values"][metric] == pytest.approx(values, rel=1e-3, abs=1e-5), (name, metric)
    heads = [(root / "comparison" / "table.csv").read_text().splitlines()[0] for root in (OLD, old)]
    assert heads[0] == heads[1]
    for name in ("comparison.json", "table.csv", "report.html"):
        shutil.copy(OLD / "comparison" / name, old / "comparison" / name)
        make_foreign(old / "comparison" / name)
        with pytest.raises(camhook.OutputError, match="camhook did not write it"):
            found.save(old / "comparison")
        shutil.copy(OLD / "comparison" / name, old / "comparison" / name)

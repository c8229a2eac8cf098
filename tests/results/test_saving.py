"""Files: what is written, when, over what, and what is left when that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import camhook
from camhook.errors import ImageError, OutputError
from camhook.results.result import CAMResult

NAMES = ["tabby, tabby cat", "crane", "crane, derrick", "Größe / 2", "fox"]
SIZES = [(90, 120), (70, 64)]  # (height, width) of the photos


@pytest.fixture(scope="module")
def cam() -> camhook.CAM:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=len(NAMES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return camhook.wrap(model, input_size=(64, 64), class_names=NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for name, size in zip(["dog.png", "wide.dog.jpg"], SIZES, strict=True):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [folder / "dog.png", folder / "wide.dog.jpg"]


@pytest.fixture(scope="module")
def one(cam: camhook.CAM, photos: list[Path]) -> CAMResult:
    return cam(photos[0], 0)


@pytest.fixture(scope="module")
def several(cam: camhook.CAM, photos: list[Path]) -> CAMResult:
    return cam(photos, [[0, 3], [2, 4]])


def listed(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_png_of_one_class_is_the_overlay(one: CAMResult, tmp_path: Path) -> None:
    path = tmp_path / "cam.png"
    assert one.save(path) == [str(path)]
    assert listed(tmp_path) == ["cam.png"]
    with Image.open(path) as image:
        assert image.info["Software"] == f"camhook {camhook.__version__}"
        assert image.size == SIZES[0][::-1]
        assert np.array_equal(np.asarray(image), np.asarray(one.overlay()))


def test_png_of_several_classes_is_a_figure(cam: camhook.CAM, photos: list[Path], tmp_path: Path) -> None:
    result = cam(photos[0], topk=3)
    assert result.save(str(tmp_path / "cam.png")) == [str(tmp_path / "cam.png")]
    with Image.open(tmp_path / "cam.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(result.figure()))
        assert image.width > 4 * 300


def test_png_of_several_images_is_numbered(several: CAMResult, cam: camhook.CAM, tmp_path: Path) -> None:
    files = several.save(tmp_path / "v1.2.png")
    assert files == [str(tmp_path / "v1.2_0.png"), str(tmp_path / "v1.2_1.png")]
    assert listed(tmp_path) == ["v1.2_0.png", "v1.2_1.png"]


def test_directory_holds_overlays_maps_and_manifest(several: CAMResult, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    files = several.save(folder)
    expected = ["dog.0-tabby.png", "dog.3-gr-e-2.png", "dog.npz", "dog.json"]
    expected += ["wide.dog.2-crane.png", "wide.dog.4-fox.png", "wide.dog.npz", "wide.dog.json"]
    assert files == [str(folder / name) for name in expected]
    assert listed(folder) == sorted(expected)
    with Image.open(folder / "wide.dog.4-fox.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(several.overlay(1, "fox")))


def test_raw_maps_round_trip_and_add_up(several: CAMResult, tmp_path: Path) -> None:
    several.save(tmp_path)
    for index, stem in enumerate(["dog", "wide.dog"]):
        with np.load(tmp_path / f"{stem}.npz") as arrays:
            assert set(arrays) == {"maps", "offset", "target", "scores", "software"}
            for key in ("maps", "offset", "target", "scores"):
                stored, held = arrays[key], getattr(several, key)[index].numpy()
                assert stored.dtype == held.dtype
                assert np.array_equal(stored, held)
            np.testing.assert_allclose(arrays["maps"].mean((1, 2)) + arrays["offset"], arrays["scores"], atol=1e-5)
            assert np.allclose(arrays["scores"], several.logits[index, several.target[index]].numpy())


def test_manifest(several: CAMResult, tmp_path: Path) -> None:
    several.save(tmp_path)
    found = json.loads((tmp_path / "dog.json").read_text())
    assert found["software"] == "camhook"
    assert found["versions"] == {"camhook": camhook.__version__, **{k: found["versions"][k] for k in found["versions"]}}
    assert set(found["versions"]) == {"camhook", "torch", "timm", "numpy"}
    assert (found["image"], found["photo_size"], found["input_size"]) == ("dog", list(SIZES[0]), [64, 64])
    assert (found["model"], found["head"], found["target_layer"]) == ("test_resnet", "mean/linear", "layer4")
    assert (found["explains"], found["method"], found["unit"]) == ("model", "cam", "logits")
    assert found["files"] == ["dog.0-tabby.png", "dog.3-gr-e-2.png", "dog.npz"]
    assert [(c["index"], c["name"], c["exact"]) for c in found["classes"]] == [
        (0, "tabby", True),
        (3, "Größe / 2", True),
    ]
    for position, entry in enumerate(found["classes"]):
        for key in ("score", "offset", "completeness_error", "offset_share"):
            held = several.scores if key == "score" else getattr(several, key)
            assert entry[key] == pytest.approx(float(held[0, position]))
    # Where the input lies in the photo: input = photo * scale + offset.
    scale, offset = found["input_scale"], found["input_offset"]
    assert all(0 < s < 2 for s in scale)
    assert SIZES[0][1] / 2 * scale[1] + offset[1] == pytest.approx(32, abs=1)


def failing(*_: Any, **__: Any) -> None:
    raise RuntimeError("no space left")


def test_manifest_is_written_last(one: CAMResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "savez_compressed", failing)
    with pytest.raises(RuntimeError, match="no space left"):
        one.save(tmp_path)
    assert listed(tmp_path) == ["dog.0-tabby.png"]


def test_a_failed_write_keeps_the_old_file(one: CAMResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one.save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
        one.save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)} == before


def test_own_files_are_replaced(cam: camhook.CAM, photos: list[Path], one: CAMResult, tmp_path: Path) -> None:
    one.save(tmp_path)
    one.save(tmp_path / "cam.png")
    names = listed(tmp_path)
    before = (tmp_path / "dog.0-tabby.png").read_bytes()
    Image.fromarray(np.full((50, 60, 3), 200, np.uint8)).save(tmp_path / "dog.png")
    other = cam(tmp_path / "dog.png", 0)
    (tmp_path / "dog.png").unlink()
    other.save(tmp_path)
    other.save(tmp_path / "cam.png")
    assert listed(tmp_path) == names
    assert (tmp_path / "dog.0-tabby.png").read_bytes() != before
    assert json.loads((tmp_path / "dog.json").read_text())["photo_size"] == [50, 60]


def picture_bytes(path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(path, "PNG")


def other_arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, software=np.array("somebody else"), maps=np.zeros(3))


def pickled(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, software=np.array([{"a": 1}], dtype=object))


def one_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def content(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


FOREIGN_FILES = [
    pytest.param("dog.0-tabby.png", picture_bytes, id="picture"),
    pytest.param("dog.0-tabby.png", content(b""), id="empty picture"),
    pytest.param("dog.0-tabby.png", content(b"\x89PNG\r\n\x1a\nbroken"), id="broken picture"),
    pytest.param("dog.npz", other_arrays, id="arrays"),
    pytest.param("dog.npz", pickled, id="pickled arrays"),
    pytest.param("dog.npz", content(b"text"), id="text for arrays"),
    pytest.param("dog.npz", one_array, id="one array"),
    pytest.param("dog.npz", content(b""), id="empty arrays"),
    pytest.param("dog.npz", content(b"PK\x03\x04cut off"), id="broken arrays"),
    pytest.param("dog.json", content(b'{"software": "somebody else"}'), id="manifest"),
    pytest.param("dog.json", content(b'["camhook"]'), id="list"),
    pytest.param("dog.json", content(b"\xff\xfe\x00"), id="not text"),
    pytest.param("dog.json", content(b""), id="empty manifest"),
]


@pytest.mark.parametrize(("name", "make"), FOREIGN_FILES)
def test_a_foreign_file_in_the_directory_is_left_alone(
    one: CAMResult, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match=rf"{name} is there already .* overwrite=True"):
        one.save(tmp_path)
    assert listed(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == before
    one.save(tmp_path, overwrite=True)
    assert listed(tmp_path) == sorted(["dog.0-tabby.png", "dog.npz", "dog.json"])
    assert (tmp_path / name).read_bytes() != before
    one.save(tmp_path)  # now it is camhook's own


def test_a_foreign_picture_is_left_alone(several: CAMResult, tmp_path: Path) -> None:
    picture_bytes(tmp_path / "cam_1.png")
    before = (tmp_path / "cam_1.png").read_bytes()
    with pytest.raises(OutputError, match=r"cam_1\.png is there already"):
        several.save(tmp_path / "cam.png")
    assert listed(tmp_path) == ["cam_1.png"]  # nor was the first of the two written
    assert (tmp_path / "cam_1.png").read_bytes() == before
    several.save(tmp_path / "cam.png", overwrite=True)
    several.save(tmp_path / "cam.png")


def test_own_file_with_a_capital_suffix_is_replaced(one: CAMResult, tmp_path: Path) -> None:
    one.save(tmp_path / "CAM.PNG")
    one.save(tmp_path / "CAM.PNG")


def test_the_photo_itself_is_not_overwritten(cam: camhook.CAM, photos: list[Path]) -> None:
    before = photos[0].read_bytes()
    with pytest.raises(OutputError, match="is there already"):
        cam(photos[0]).save(photos[0])
    assert photos[0].read_bytes() == before


def test_file_where_a_directory_is_needed(one: CAMResult, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(OutputError, match=r"cannot be made: .* Choose another path"):
            one.save(path, overwrite=True)
    assert listed(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "mine"


def test_file_where_a_pictures_directory_is_needed(one: CAMResult, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        one.save(tmp_path / "out" / "cam.png")


def test_missing_parent_of_a_picture(one: CAMResult, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        one.save(tmp_path / "absent" / "cam.png")
    assert listed(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_directory_in_a_pictures_place(one: CAMResult, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "cam.png").mkdir()
    with pytest.raises(OutputError, match="Choose another path"):
        one.save(tmp_path / "cam.png", overwrite=overwrite)
    assert listed(tmp_path) == ["cam.png"]
    assert listed(tmp_path / "cam.png") == []


@pytest.mark.parametrize("name", ["cam.jpg", "cam.jpeg", "maps.npz", "cam.pngx"])
def test_unknown_suffix(one: CAMResult, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"ends in \.png or a directory was expected, found '\.\w+'"):
        one.save(tmp_path / name)
    assert listed(tmp_path) == []


def test_directory_with_a_dot_in_its_name_that_is_there(one: CAMResult, tmp_path: Path) -> None:
    (tmp_path / "run.1").mkdir()
    assert len(one.save(tmp_path / "run.1")) == 3


def test_two_images_of_one_name(cam: camhook.CAM, photos: list[Path], tmp_path: Path) -> None:
    result = cam([photos[0], photos[0]], 0)
    with pytest.raises(OutputError, match=r"Two images would be written to .*dog\S*\. Give them different"):
        result.save(tmp_path / "out")
    assert listed(tmp_path) == []
    assert len(result.renamed(["left", "right"]).save(tmp_path / "out")) == 6
    assert len(result.save(tmp_path / "cam.png")) == 2  # numbers tell them apart


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b"])
def test_a_name_leads_out_of_no_folder(one: CAMResult, name: str) -> None:
    with pytest.raises(ImageError, match="cannot be part of a file's name"):
        one.renamed([name])


def test_map_without_positive_evidence_says_so(cam: camhook.CAM, photos: list[Path], tmp_path: Path) -> None:
    fc = cam.model.fc
    assert isinstance(fc, torch.nn.Linear)
    before = fc.weight.detach().clone()
    with torch.no_grad():
        fc.weight[4] = -fc.weight[4].abs()  # the features come out of a ReLU
    result = cam(photos[0], [[4, 0]])
    with torch.no_grad():
        fc.weight.copy_(before)
    assert (result.maps[0, 0] <= 0).all()
    assert (result.maps[0, 0] < 0).any()
    assert "no positive evidence" in result.panels()[1].lines
    assert "no positive evidence" not in result.panels()[2].lines
    result.save(tmp_path / "cam.png")
    result.save(tmp_path)
    with np.load(tmp_path / "dog.npz") as arrays:
        assert (arrays["maps"][0] <= 0).all()
    assert json.loads((tmp_path / "dog.json").read_text())["classes"][0]["score"] < 0
    assert listed(tmp_path) == sorted(["cam.png", "dog.4-fox.png", "dog.0-tabby.png", "dog.npz", "dog.json"])


def test_tensor_is_saved_over_the_picture_it_shows(cam: camhook.CAM, tmp_path: Path) -> None:
    result = cam(torch.zeros(2, 3, 64, 64), 1)
    result.save(tmp_path)
    assert listed(tmp_path) == sorted(f"image{i}.{end}" for i in range(2) for end in ("1-crane.png", "npz", "json"))

"""Batches of images of any kind: what is read, what is skipped and why, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camhook.errors import CamhookError, ImageError
from camhook.images.loading import ImageReader, load_batches, photo_files, unique_names
from camhook.images.preprocessing import Preprocessing

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """Six photos, two of which cannot be read."""
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    return {path.stem: path for path in sorted(tmp_path.iterdir())}


class Labelled:
    """Reads a photo by its name, with a label."""

    def __init__(self, photos: dict[str, Path]) -> None:
        self.photos = photos

    def __call__(self, key: str) -> tuple[Path, int]:
        return self.photos[key], int(key)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_what_can_be_read_and_name_the_others(workers: int, photos: dict[str, Path]) -> None:
    preprocessing = Preprocessing(CONFIG)
    reader = ImageReader(Labelled(photos), preprocessing)
    first, second, third = load_batches(reader, [["0", "1", "2"], ["3", "4"], ["1"]], workers=workers)
    assert (first.keys, first.extras, len(first)) == (["0", "2"], [0, 2], 3)
    expected = preprocessing([photos["0"], photos["2"]])
    assert first.images is not None
    assert torch.equal(first.images, expected.tensor)
    assert first.geometries == expected.geometries
    assert [key for key, _ in first.skipped] == ["1"]
    assert "0 bytes" in first.skipped[0][1]
    assert [key for key, _ in second.skipped] == ["4"]
    assert "cut short" in second.skipped[0][1]
    assert third.images is None
    assert len(third) == len(third.skipped) == 1


def test_arrays_pil_images_and_tensors_are_read_alike(photos: dict[str, Path]) -> None:
    preprocessing = Preprocessing(CONFIG)
    tensor = preprocessing([photos["0"]]).tensor[0]
    with Image.open(photos["0"]) as image:
        items: list[Any] = [photos["0"], str(photos["0"]), image, np.asarray(image), tensor]
        reader: ImageReader[int] = ImageReader(lambda index: (items[index], None), preprocessing)
        batch = reader.batch(range(5))
    assert batch.images is not None
    assert torch.equal(batch.images, tensor.expand(5, -1, -1, -1))
    assert [geometry is None for geometry in batch.geometries] == [False] * 4 + [True]


def test_a_collate_function_makes_the_batch() -> None:
    def collate(items: list[Any]) -> tuple[Any, Any]:
        return torch.stack([torch.full((3, 4, 4), float(item)) for item in items]), torch.tensor(items)

    def read(key: int) -> int:
        if key == 2:
            raise ValueError("not\nthis one")
        return key

    batch = ImageReader(read, None, collate).batch([1, 2, 3])
    assert batch.images is not None
    assert batch.images[:, 0, 0, 0].tolist() == batch.extras.tolist() == [1, 3]
    assert batch.skipped == [(2, "ValueError: not this one")]
    with pytest.raises(CamhookError, match=r"gave list for 1 items"):
        ImageReader(read, None, lambda items: (items, None)).batch([1])


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], "different sizes"),
        ([torch.zeros(1, 3, 4, 4)], r"expected \(C, H, W\)"),
        ([np.zeros((4, 4, 3), dtype=np.uint8)], "preprocess photos is not known"),
    ],
)
def test_images_that_cannot_be_batched_are_an_error(images: list[Any], says: str) -> None:
    reader: ImageReader[int] = ImageReader(lambda index: (images[index], None), None)
    with pytest.raises(CamhookError, match=says):
        reader.batch(range(len(images)))


def test_the_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    reader = ImageReader(lambda key: (torch.zeros(3, 4, 4), key), None)
    assert [batch.extras for batch in load_batches(reader, [[0], [1]])] == [[0], [1]]
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_are_asked_for_when_they_are_read() -> None:
    asked: list[int] = []

    def groups() -> Any:
        for key in range(3):
            asked.append(key)
            yield [key]

    batches = load_batches(ImageReader(lambda key: (torch.zeros(3, 4, 4), key), None), groups())
    assert next(batches).keys == [0]
    assert asked == [0]


def test_photos_of_folders_and_their_names(tmp_path: Path) -> None:
    for name in ("a/cat.jpg", "a/dog.png", "b/cat.jpg", "b/cat.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list(photo_files([tmp_path / "b", tmp_path / "a" / "dog.png"]))
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["b/cat.jpg", "b/cat.png", "a/dog.png"]
    names = unique_names(list(photo_files([tmp_path])))
    assert sorted(names.values()) == ["a-cat", "b-cat-jpg", "b-cat-png", "dog"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no photos"):
        list(photo_files([tmp_path / "empty"]))

"""The trained fixture reads digits it has not seen, and its pictures are what they claim to be."""

from __future__ import annotations

import numpy as np
import torch
from digits import FIXTURE, example, held_out, load_digits_vit
from safetensors import safe_open


def test_fixture_is_small_and_says_how_it_was_made() -> None:
    assert FIXTURE.stat().st_size < 2**20
    with safe_open(FIXTURE, "pt") as file:
        assert file.metadata()["made_by"] == "examples/train_digits_vit.py --steps 2800 --seed 0"


def test_model_reads_held_out_digits() -> None:
    model = load_digits_vit()
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    images, labels, boxes = held_out(500)
    assert example.top1(model, example.Scenes(images, labels, boxes)) >= 0.9


def test_same_seed_same_scenes() -> None:
    first, second, other = held_out(20), held_out(20), held_out(20, seed=2)
    for one, same in zip(first, second, strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first[0], other[0])


def test_boxes_hold_the_digit_and_lie_in_the_picture() -> None:
    shapes = np.stack([np.full((32, 32), fill, dtype=np.float32) for fill in (3, 5)])  # a plain square for a digit
    images, labels, boxes = example.draw_scenes(shapes, np.array([3, 5]), 50, np.random.RandomState(0))
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    for image, label, (left, top, right, bottom) in zip(images, labels, boxes.tolist(), strict=True):
        assert (right - left, bottom - top) == (32, 32)
        assert image[0, top:bottom, left:right].min() > label - 1


def test_digits_are_spread_over_the_picture() -> None:
    boxes = held_out(500)[2]
    assert boxes[:, 0].unique().tolist() == boxes[:, 1].unique().tolist() == list(range(0, 33, 4))
    assert (boxes[:, 2] - boxes[:, 0]).mul(boxes[:, 3] - boxes[:, 1]).eq(64 * 64 // 4).all()


def test_held_out_digits_are_not_in_training() -> None:
    (train, train_labels), (held, held_labels) = example.handwriting("train"), example.handwriting("held_out")
    assert (len(train), len(held)) == (len(train_labels), len(held_labels)) == (1297, 500)
    seen = {digit.tobytes() for digit in train}
    assert not any(digit.tobytes() in seen for digit in held)

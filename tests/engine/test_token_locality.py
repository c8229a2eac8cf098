"""Maps of the trained class-token fixture lie on the digit: what completeness cannot see, positions put right.

The digit's box is known, so the share of positive evidence inside it and the pointing game are measured on scenes held
out from training. Run with -s for the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from attention_reference import TokenReference, deviation, vit
from digits import held_out, load_digits_vit
from torch import Tensor

import camhook

COUNT = 200
NODES = 64  # of the path integral, by midpoints
PATCH = 8  # pixels
CHANCE = 0.25  # of the picture is box


@dataclass(frozen=True, eq=False)
class Scenes:
    images: Tensor
    labels: Tensor
    boxes: Tensor
    native: camhook.CAMResult
    maps: dict[str, Tensor]
    """Of the label, (COUNT, 8, 8), by each way of making them."""
    offsets: Tensor
    """All classes', (COUNT, 10)."""
    logits: Tensor
    reference: TokenReference


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    images, labels, boxes = held_out(COUNT)
    model: Any = load_digits_vit()
    cam = camhook.wrap(model, input_size=(64, 64))
    native = cam(images, labels)
    offsets = cam(images, "all").offset
    maps = {"camhook": native.maps[:, 0], "Grad-CAM, last norm1": grad_cam(model, images, labels)}
    model = model.double().requires_grad_(False)
    with torch.no_grad():
        reference = TokenReference(vit(model), images.double())
        every = reference.maps()
    shares = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    maps["secants, by hand"] = every[torch.arange(COUNT), labels].unflatten(1, (8, 8))
    maps[f"path integral, {NODES} nodes"] = reference.integrated(labels, shares).unflatten(1, (8, 8))
    return Scenes(images, labels, boxes, native, maps, offsets, native.logits, reference)


def grad_cam(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM at the input of the last block's attention, as is usual for vision transformers; (B, 8, 8)."""
    seen: list[Tensor] = []
    handle = model.blocks[-1].norm1.register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        score = model(images).gather(1, labels[:, None]).sum()
    finally:
        handle.remove()
    (slopes,) = torch.autograd.grad(score, seen)
    patches, slopes = seen[0][:, 1:].detach(), slopes[:, 1:]
    maps: Tensor = (patches * slopes.mean(1, keepdim=True)).sum(2).relu().unflatten(1, (8, 8))
    return maps


def covered(boxes: Tensor) -> Tensor:
    """The share of each cell's area that the box covers, (B, 8, 8)."""
    starts = PATCH * torch.arange(8)

    def along(low: Tensor, high: Tensor) -> Tensor:
        ends = (starts + PATCH).minimum(high[:, None])
        return (ends - starts.maximum(low[:, None])).clamp(min=0) / PATCH

    return along(boxes[:, 1], boxes[:, 3])[:, :, None] * along(boxes[:, 0], boxes[:, 2])[:, None]


def mass_inside(maps: Tensor, boxes: Tensor) -> float:
    """The mean share of a map's positive part that lies in the box; a map with none has nothing there."""
    positive = maps.clamp(min=0)
    return float(((positive * covered(boxes)).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1e-12)).mean())


def pointing_game(maps: Tensor, boxes: Tensor) -> float:
    """How often the centre of the largest cell lies in the box."""
    best = maps.flatten(1).argmax(1)
    x, y = PATCH * (best % 8) + PATCH // 2, PATCH * (best // 8) + PATCH // 2
    left, top, right, bottom = boxes.T
    return float(((left <= x) & (x < right) & (top <= y) & (y < bottom)).double().mean())


def check_locality(maps: Tensor, boxes: Tensor) -> None:
    assert mass_inside(maps, boxes) >= 0.9
    assert pointing_game(maps, boxes) >= 0.95


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one.flatten(1).double(), other.flatten(1).double(), 1)


def distances(one: Tensor, other: Tensor) -> Tensor:
    relative: Tensor = (one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)
    return relative


def test_measures_know_a_map_on_the_digit_from_one_beside_it() -> None:
    boxes = torch.tensor([[8, 16, 40, 48], [4, 20, 36, 52]])
    maps = covered(boxes)
    assert maps.sum((1, 2)).tolist() == [16, 16]
    assert (maps[0] > 0).nonzero().min(0).values.tolist() == [2, 1]
    assert mass_inside(maps[:1], boxes[:1]) == pointing_game(maps[:1], boxes[:1]) == 1
    assert mass_inside(maps, boxes) == pytest.approx((1 + (9 + 12 / 4 + 4 / 16) / 16) / 2)
    assert mass_inside(-maps, boxes) == mass_inside(maps - 1, boxes) == 0
    assert mass_inside(maps[:1].roll(4, 1), boxes[:1]) == pointing_game(maps[:1].roll(4, 1), boxes[:1]) == 0


def test_table(scenes: Scenes) -> None:
    """Print what was measured; the tests below judge it."""
    table = [f"{f'map of the label, {COUNT} held-out scenes':36}  mass in box  pointing  cosine  distance to camhook"]
    for name, maps in scenes.maps.items():
        row = f"{mass_inside(maps, scenes.boxes):11.3f}  {pointing_game(maps, scenes.boxes):8.3f}"
        if name != "Grad-CAM, last norm1":  # of another scale
            row += f"  {float(cosines(maps, scenes.maps['camhook']).mean()):6.4f}"
            row += f"  {float(distances(maps, scenes.maps['camhook']).mean()):19.4f}"
        table.append(f"{name:36}  {row}")
    table.append(f"{'chance':36}  {CHANCE:11.3f}  {CHANCE:8.3f}")
    known = [float((scores.argmax(1) == scenes.labels).float().mean()) for scores in (scenes.logits, scenes.offsets)]
    mean = float(scenes.native.offset.mean()), float(scenes.native.scores.mean())
    table.append(f"top-1: model {known[0]:.3f}, offsets {known[1]:.3f}; mean offset {mean[0]:.2f} of {mean[1]:.2f}")
    print("", *table, sep="\n")  # noqa: T201


def test_the_native_map_is_on_the_digit(scenes: Scenes) -> None:
    assert scenes.native.exact.all()
    check_locality(scenes.maps["camhook"], scenes.boxes)


def test_grad_cam_is_less_so(scenes: Scenes) -> None:
    maps = scenes.maps["Grad-CAM, last norm1"]
    assert mass_inside(maps, scenes.boxes) < mass_inside(scenes.maps["camhook"], scenes.boxes) - 0.2
    assert pointing_game(maps, scenes.boxes) < pointing_game(scenes.maps["camhook"], scenes.boxes) - 0.1


def test_the_offset_alone_knows_nothing(scenes: Scenes) -> None:
    assert float((scenes.logits.argmax(1) == scenes.labels).float().mean()) > 0.85
    assert float((scenes.offsets.argmax(1) == scenes.labels).float().mean()) < 0.2


@pytest.mark.parametrize("wrong", ["transposed", "shuffled", "rows reversed", "next image's"])
def test_positions_in_the_wrong_order_fail(scenes: Scenes, wrong: str) -> None:
    maps = scenes.maps["camhook"]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    changed = {
        "transposed": maps.mT,
        "shuffled": maps.flatten(1)[:, order].view_as(maps),
        "rows reversed": maps.flip(1),
        "next image's": maps.roll(1, 0),
    }[wrong]
    assert torch.allclose(changed.sum(), maps.sum(), rtol=1e-4)  # as complete as before
    with pytest.raises(AssertionError):
        check_locality(changed, scenes.boxes)
    assert mass_inside(changed, scenes.boxes) < 0.5


def test_the_native_map_is_that_of_the_weights_written_out(scenes: Scenes) -> None:
    """In single precision here; test_attention.py has the other families, in double."""
    assert deviation(scenes.maps["camhook"].double(), scenes.maps["secants, by hand"]) < 1e-4
    expected = scenes.reference.offset.gather(1, scenes.labels[:, None])
    assert float((scenes.native.offset - expected).abs().max() / scenes.logits.abs().max()) < 1e-4


def test_secants_tell_what_the_path_integral_tells(scenes: Scenes) -> None:
    """A secant for each activation, or slopes along the whole way, through all blocks: the map is all but the same."""
    secants, integral = scenes.maps["camhook"], scenes.maps[f"path integral, {NODES} nodes"]
    missed = integral.mean((1, 2)) - secants.mean((1, 2))
    assert float(missed.abs().max() / scenes.logits.abs().max()) < 1e-3
    assert float(cosines(secants, integral).mean()) > 0.99
    assert (distances(secants, integral) > 1e-4).any()  # two things, for all that
    for measure in (mass_inside, pointing_game):
        assert measure(integral, scenes.boxes) == pytest.approx(measure(secants, scenes.boxes), abs=0.02)

"""Plans for all of timm's architectures, compared with what each architecture itself declares.

``pytest -m zoo -k zoo`` prints the table. What is expected comes from each model's own attributes and from
the shapes of its own ``forward_features`` on the meta device, not from camhook.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

from camhook.cli import models as zoo
from camhook.cli.models import Row

pytestmark = pytest.mark.zoo

# Of the architectures, what cannot be wrapped, and why.
CANNOT_BE_HAD: dict[str, str] = {}

# Encoders that take no classes whatever they are made with: they have one row, and their maps need a probe.
ENCODERS = ["*_vit_*_enc", "mobilenetv5_300m_enc"]

# What timm does not declare. Tokens that belong to no position, where the model has no `num_prefix_tokens`:
PREFIX = {"coat_*": 1, "crossvit_*": 1, "pit_*_distilled_*": 2, "pit_*": 1, "volo_*": 1}
# Pixels for each cell of the finest grid that class tokens, or heads at several stages, read; else the last stage's:
FINEST = {
    "coat_lite_*": 32,
    "coat_*": 8,
    "crossvit_*": 12,
    "deepseek_*_align": 42,
    "efficientvim_*": 16,
    "mvitv2_*_cls": 8,
    "qwen3_*_merge": 32,
}
# Heads that do not do what `global_pool` says, or do not say:
POOLING = {
    "efficientvim_*": "general",  # hidden states of the stages, and the mean of the last
    "hiera_*": "mean",
    "hieradet_*": "mean",
    "sam2_*": "mean",
    "*mambaout*": "mean",
    "vgg*": "flatten",
    "volo_*": "attention+max",  # half the largest of the patches' own logits
    "vit_pe_core_gigantic_*": "attention",  # a pool by attention; the others' pools read a class token as well
    "vit_pe_core_*": "attention+attention",
    "test_vit3": "attention+attention",
}
POOLING_OF = {"avg": "mean", "fast": "mean", "token": "attention", "map": "attention"}


class Declared(NamedTuple):
    """What an architecture declares."""

    has_classifier: bool
    input_size: tuple[int, int]
    shapes: list[tuple[int, ...]]
    prefix: int | None
    axes: str | None
    patch_size: Any
    reduction: int | None
    pool: str | None


Found = list[tuple[Row, Declared]]


def declared(name: str, given_classes: int | None) -> Declared:
    """Build the architecture without values and ask it."""
    with torch.device("meta"), torch.no_grad():
        model: Any = timm.create_model(name, **({} if given_classes is None else {"num_classes": given_classes})).eval()
        channels, *size = timm.data.resolve_model_data_config(model)["input_size"]
        # What the model was built for, where the two are at odds (ViTamin).
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or size
        features = model.forward_features(torch.empty(2, channels, *size))
    features = [features] if isinstance(features, Tensor) else list(features)
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    classifiers = list(classifier) if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]
    info = getattr(model, "feature_info", None)
    stages = getattr(info, "info", info)
    pools = [getattr(model, "global_pool", None), getattr(getattr(model, "head", None), "global_pool", None)]
    pools = [getattr(pool, "pool_type", pool) for pool in pools]
    axes = getattr(model, "output_fmt", None)
    return Declared(
        has_classifier=bool(model.num_classes)
        and not all(c is None or isinstance(c, nn.Identity) for c in classifiers),
        input_size=(size[0], size[1]),
        shapes=[tuple(each.shape[1:]) for each in features],
        prefix=getattr(model, "num_prefix_tokens", None),
        axes=None if axes is None else str(getattr(axes, "value", axes)),
        patch_size=getattr(getattr(model, "patch_embed", None), "patch_size", None),
        reduction=stages[-1]["reduction"] if stages else None,
        pool=next((pool for pool in pools if isinstance(pool, str) and pool), None),
    )


def compared(name: str) -> Found:
    """Return what camhook finds for an architecture, and what the architecture declares."""
    return [(row, declared(name, row.given_classes)) for row in zoo.read(name)]


@pytest.fixture(scope="module")
def found(pytestconfig: pytest.Config) -> Found:
    """Compare all architectures, and write the table to the terminal."""
    results = dict(zoo.in_parallel(compared, timm.list_models(), os.cpu_count() or 1))
    pairs = [pair for name in sorted(results) for pair in results[name] or []]
    rows = [row for row, _ in pairs]
    writer = pytestconfig.get_terminal_writer()
    for line in ["", *zoo.rendered(rows, "table").splitlines(), "", *zoo.summary(rows).splitlines()]:
        writer.line(line)
    assert all(results.values()), [name for name in results if not results[name]]
    return pairs


def wrong(found: Found, value: Callable[[Row], Any], expected: Callable[[Row, Declared], Any]) -> dict[str, Any]:
    """Return (found, expected) by title, of the rows where the two differ."""
    pairs = [(row, value(row), expected(row, says)) for row, says in found if not row.reason]
    return {row.title: (has, wanted) for row, has, wanted in pairs if has != wanted}


def special(table: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in table.items() if fnmatch(name, pattern)), default)


def test_every_architecture_is_had(found: Found) -> None:
    assert {row.title: row.reason for row, _ in found if row.reason} == CANNOT_BE_HAD
    assert {row.name for row, _ in found} == set(timm.list_models())
    if timm.__version__ == "1.0.31":
        assert len({row.name for row, _ in found}) == 1371
        assert len({row.family for row, _ in found}) == 98


def test_no_layout_is_wrong(found: Found) -> None:
    def layout(row: Row, says: Declared) -> str:
        if row.family == "efficientvim":  # it returns the pooled hidden states; the map is read before
            return "NCHW"
        if {len(shape) for shape in says.shapes} == {2} or fnmatch(row.name, "*_vit_*_enc"):  # the last step reshapes
            return "NLC"
        return "NHWC" if says.axes == "NHWC" else "NCHW"

    assert wrong(found, lambda row: row.layout, layout) == {}


def test_no_token_is_taken_for_a_position(found: Found) -> None:
    def prefix(row: Row, says: Declared) -> int:
        if row.layout != "NLC":
            return 0
        return int(special(PREFIX, row.name, 0)) if says.prefix is None else says.prefix

    assert wrong(found, lambda row: row.num_prefix_tokens, prefix) == {}


def test_no_grid_is_wrong(found: Found) -> None:
    def grid(row: Row, says: Declared) -> Sequence[int]:
        if row.layout != "NLC" and row.family != "efficientvim":
            (shape,) = says.shapes
            return shape[:2] if row.layout == "NHWC" else shape[1:]
        if row.family == "pit":  # patches overlap by half
            patch = says.patch_size[0]
            return tuple((size - patch) // (patch // 2) + 1 for size in says.input_size)
        stride = special(FINEST, row.name, says.reduction)
        # Strided convolutions of tokens round up, patches down; the two are the same but for LeViT.
        return tuple(-(-size // stride) if row.family == "levit" else size // stride for size in says.input_size)

    assert wrong(found, lambda row: row.grid_size, grid) == {}
    assert wrong(found, lambda row: row.input_size, lambda row, says: says.input_size) == {}


def test_grids_of_features_are_what_the_last_stage_declares(found: Found) -> None:
    # Convolutions without padding (Inception) lose a row; MobileNetV5 joins its stages at half the last one's stride.
    differing = {
        row.title: (row.grid_size, says.input_size, says.reduction)
        for row, says in found
        if row.layout in ("NCHW", "NHWC") and says.reduction and row.grid_size
        if not row.family.startswith(("inception", "mobilenetv5", "efficientvim"))
        if any(
            abs(cells - size / says.reduction) >= 1 for cells, size in zip(row.grid_size, says.input_size, strict=True)
        )
    }
    assert differing == {}


def test_no_pooling_is_wrong(found: Found) -> None:
    def pooling(row: Row, says: Declared) -> str:
        if not says.has_classifier:
            return "none"
        return str(special(POOLING, row.name, POOLING_OF.get(str(says.pool), f"unknown: {says.pool}")))

    assert wrong(found, lambda row: row.pooling, pooling) == {}


def test_what_takes_classes_has_a_row_with_classes(found: Found) -> None:
    headless = {row.name for row, _ in found if row.pooling == "none" and row.given_classes is None}
    given = {row.name for row, _ in found if row.given_classes is not None}
    assert {name for name in headless if not special(dict.fromkeys(ENCODERS, True), name, False)} == given


def test_one_pass_is_enough(found: Found) -> None:
    assert wrong(found, lambda row: row.forward_passes, lambda row, _: 2 if row.family == "efficientvim" else 1) == {}

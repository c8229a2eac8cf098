"""Files as camhook 0.1.0 wrote them before its rooms were rebuilt (commit 2ae65cf), and what they were made from.

``tests/test_old_files.py`` imports the models and photos from here, and holds later versions to the files beside this
script. They were written by running it on that commit; running it on another one would prove nothing:
    PYTHONPATH=/path/to/checkout/of/2ae65cf python tests/data/old/make_old_files.py

Weights and photos come from numpy's integers, which are the same bits on every machine: manifests and probes hold
hashes of the weights.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click import Group
from PIL import Image
from torch import Tensor, nn

HERE = Path(__file__).parent
NUM_CLASSES = 7
MODEL = ["--model", "test_resnet", "--num-classes", str(NUM_CLASSES), "--device", "cpu"]
EXPLAIN = ["--topk", "2", "--workers", "0"]
FIT = ["--model", "test_resnet", "--num-classes", "0", "--device", "cpu", "--penalty", "0.1", "--holdout", "0.25"]
EXPORT: dict[str, Any] = {"target": [1, 2], "input_size": (32, 32)}
COMPARE: dict[str, Any] = {
    "methods": ["cam", "layer_grad_cam", "input_x_gradient"],
    "metrics": ["insertion", "deletion", "completeness"],
    "steps": 4,
}


class Net(nn.Module):
    """A convolutional net of 7,000 parameters, small enough for an exported file to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.body(x).mean((2, 3)))


def filled(model: nn.Module) -> nn.Module:
    """Give a model weights that are multiples of powers of two, in place: exact on every machine."""
    numbers = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.from_numpy(numbers.integers(-128, 128, tuple(parameter.shape))).to(parameter)
            if parameter.ndim > 1:
                parameter.copy_(drawn * 2.0 ** -round(6 + np.log2(parameter[0].numel()) / 2))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0).add_(drawn / 1024)  # norms, and biases
    return model.eval()


def timm_model(num_classes: int = NUM_CLASSES) -> nn.Module:
    """Return timm's ``test_resnet`` with those weights."""
    import timm

    model: nn.Module = timm.create_model("test_resnet", num_classes=num_classes)
    return filled(model)


def write_checkpoint(path: Path, num_classes: int = NUM_CLASSES) -> Path:
    """Write the weights of `timm_model` to a file."""
    torch.save(timm_model(num_classes).state_dict(), path)
    return path


def write_photos(folder: Path, count: int = 3) -> list[Path]:
    """Write small photos, each with a bright square of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 64, (48, 48 + 4 * index, 3), dtype=np.uint8)
        top, left = 4 + 7 * (index % 4), 4 + 9 * (index % 3)
        pixels[top : top + 16, left : left + 16, index % 3] += 160
        files.append(folder / f"photo{index}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


def write_classes(folder: Path) -> Path:
    """Write photos into a folder for each of three classes, by the colour of their square."""
    for index, file in enumerate(write_photos(folder / "all", 24)):
        place = folder / f"class{index % 3}"
        place.mkdir(exist_ok=True)
        file.replace(place / file.name)
    (folder / "all").rmdir()
    return folder


def command() -> Group:
    """Return the command line, which this version has in ``camhook.cli`` and later ones in ``camhook.cli.main``."""
    found: Any = getattr(import_module("camhook.cli"), "main", None)
    if not isinstance(found, Group):
        found = import_module("camhook.cli.main").main
    assert isinstance(found, Group)
    return found


def small_image() -> Tensor:
    """Return an image (1, 3, 32, 32) for `Net`."""
    drawn = np.random.default_rng(5).integers(-128, 128, (1, 3, 32, 32))
    return torch.from_numpy(drawn).float() / 64


def make_small(folder: Path) -> None:
    """Drop from files what is large or names paths of a machine, and decides nothing: traces, weights, pictures."""
    import onnx

    model = onnx.load(folder / "exported.onnx")
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, folder / "exported.onnx")

    with zipfile.ZipFile(folder / "exported.pt2") as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if "/extra/" in name}
    with zipfile.ZipFile(folder / "exported.pt2", "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)

    page = folder / "comparison" / "report.html"
    page.write_text(re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", page.read_text()))
    (folder / "comparison" / "figure.png").unlink()


def main() -> None:
    """Write all files anew."""
    import timm
    from click.testing import CliRunner

    import camhook

    def run(*arguments: str | Path, status: int = 0) -> None:
        found = CliRunner().invoke(command(), [str(argument) for argument in arguments])
        print(found.output)  # noqa: T201
        assert found.exit_code == status, found.exception

    for old in (path for path in HERE.iterdir() if path.name not in ("make_old_files.py", "__pycache__")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photos = write_photos(work / "photos")
        cam = camhook.wrap(timm_model())

        cam(photos[:1], topk=2).save(HERE / "result")
        cam(photos[:1]).save(HERE / "result" / "overlay.png")

        (work / "photos" / "broken.jpg").write_bytes(b"no photo")
        weights = write_checkpoint(work / "weights.pth")
        run(
            "explain", work / "photos", *MODEL, *EXPLAIN, "--checkpoint", weights, "--output", HERE / "folder", status=1
        )

        fitted = write_checkpoint(work / "encoder.pth", 0)
        options: list[str | Path] = ["--weights", fitted, "--output", HERE / "probe.safetensors", "--no-progress"]
        reports: list[str | Path] = ["--report", HERE / "fit_report.json", "--figure", HERE / "fit_figure.png"]
        run("fit", write_classes(work / "classes"), *FIT, *options, *reports)
        probed = camhook.wrap(timm_model(0), probe=HERE / "probe.safetensors")
        assert probed.probe is not None
        probed.probe.save_pretrained(HERE / "probe_pretrained")
        result = probed(photos[0], "all")
        parts: dict[str, Any] = {name: getattr(result, name).numpy() for name in ("maps", "offset", "scores", "logits")}
        np.savez(HERE / "probe_expected.npz", **parts)

        small = camhook.wrap(filled(Net()), input_size=(32, 32))
        for suffix in ("onnx", "pt2"):
            small.export(HERE / f"exported.{suffix}", **EXPORT)
        explained = small(small_image(), [EXPORT["target"]])
        np.savez(HERE / "exported_expected.npz", maps=explained.maps.numpy(), logits=explained.logits.numpy())

        camhook.compare(cam, photos[:2], **COMPARE).save(HERE / "comparison")
        make_small(HERE)

        for file in (*(HERE / "folder").glob("*.json"), HERE / "folder" / "skipped.txt"):
            file.write_text(file.read_text().replace(str(work), "/home/someone"))  # no path of the machine it ran on
    versions = {"camhook": camhook.__version__, "torch": torch.__version__, "timm": timm.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions | {"python": sys.version.split()[0]}, indent=1) + "\n")


if __name__ == "__main__":
    main()

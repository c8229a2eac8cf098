"""A trained vision transformer and pictures whose digit lies in a known box, both by the example that trains it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

FIXTURE = Path(__file__).parent / "data" / "digits_vit.safetensors"


def load_example() -> ModuleType:
    """The training script as a module, by its path: examples are no package."""
    path = Path(__file__).parents[1] / "examples" / "train_digits_vit.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


def load_digits_vit() -> nn.Module:
    """The fixture, in float32 and ready to judge."""
    model: nn.Module = example.build_model()
    model.load_state_dict(load_file(FIXTURE))
    return model.eval()


def held_out(n: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, 1, 64, 64), labels (n,), boxes (n, 4: left, top, right, bottom in pixels), none of them trained on."""
    images, labels, boxes = example.draw_scenes(*example.handwriting("held_out"), n, np.random.RandomState(seed))
    return images, labels, boxes

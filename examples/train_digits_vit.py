"""Train a small vision transformer to read one handwritten digit in a picture full of pieces of others.

Run: python examples/train_digits_vit.py [--steps N] [--seed N] [--output FILE.safetensors]

The pictures are made on the fly from scikit-learn's digits, with the box of the digit known, so nothing is downloaded.
The default takes a few minutes on two CPU cores. `tests/data/digits_vit.safetensors` was made by it.
"""

import argparse
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

Array = npt.NDArray[Any]

CANVAS, DIGIT, FRAGMENT = 64, 32, 10  # sides in pixels: a digit's box is a quarter of the picture
PATCH, STEP = 8, 4  # digits lie on every fourth pixel, so nearly half of the boxes' edges cut through patches
NUM_FRAGMENTS = 5
NUM_HELD_OUT = 500  # of the 1,797 digits
BATCH_SIZE, LEARNING_RATE = 64, 2e-3


class Scenes(NamedTuple):
    """Pictures of one digit each.

    Attributes
    ----------
    images
        (B, 1, 64, 64), brightness; paper is about 0 and ink about 1.
    labels
        (B,), which digit it is.
    boxes
        (B, 4), the square it was pasted on: left, top, right, bottom in pixels, the last two exclusive.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


def handwriting(split: Literal["train", "held_out"]) -> tuple[Array, Array]:
    """Give the digits of one side of a fixed split, (M, 32, 32) in [0, 1], and their labels, (M,)."""
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))  # a stream that NumPy has frozen for good
    chosen = order[:NUM_HELD_OUT] if split == "held_out" else order[NUM_HELD_OUT:]
    small = torch.from_numpy(digits.images[chosen] / 16).float()
    return F.interpolate(small[:, None], (DIGIT, DIGIT), mode="bilinear")[:, 0].numpy(), digits.target[chosen]


def paste(canvases: Array, pieces: Array, corners: Array) -> None:
    """Put a square piece on each canvas, in place; where ink meets ink the darker one stays."""
    index, side = np.arange(len(canvases))[:, None, None], np.arange(pieces.shape[-1])
    square = index, corners[:, 1, None, None] + side[:, None], corners[:, 0, None, None] + side
    canvases[square] = np.maximum(canvases[square], pieces)


def draw_scenes(
    digits: Array, labels: Array, count: int, rng: np.random.RandomState, *, difficulty: float = 1.0
) -> Scenes:
    """Paste randomly chosen digits at random places among noise and fragments of other digits.

    A difficulty of 1 has all fragments and all places, 0 has no fragments and every digit at the centre.
    """
    canvases = np.zeros((count, CANVAS, CANVAS), dtype=np.float32)
    inside = np.lib.stride_tricks.sliding_window_view(digits, (FRAGMENT, FRAGMENT), axis=(1, 2))
    for _ in range(int(NUM_FRAGMENTS * difficulty)):
        row, column = rng.randint(DIGIT - FRAGMENT + 1, size=(2, count))
        fragments = inside[rng.randint(len(digits), size=count), row, column]
        paste(canvases, fragments, rng.randint(CANVAS - FRAGMENT + 1, size=(count, 2)))
    chosen = rng.randint(len(digits), size=count)
    reach = (CANVAS - DIGIT) / 2 / STEP  # to either side of the centre
    corners = STEP * np.rint(reach + difficulty * rng.uniform(-reach - 0.5, reach + 0.5, size=(count, 2))).astype(int)
    paste(canvases, digits[chosen], corners)
    canvases += rng.normal(scale=0.1, size=canvases.shape)
    return Scenes(
        torch.from_numpy(canvases)[:, None],
        torch.from_numpy(labels[chosen]),
        torch.from_numpy(np.hstack([corners, corners + DIGIT])),
    )


def build_model() -> nn.Module:
    """Give the untrained classifier: 8 x 8 patches and a class token, about 200,000 parameters."""
    shape = {"img_size": CANVAS, "patch_size": PATCH, "embed_dim": 64, "depth": 4, "num_heads": 4}
    model = VisionTransformer(**shape, in_chans=1, num_classes=10, global_pool="token")
    nn.init.normal_(model.pos_embed, std=0.2)  # ten times timm's: where a stroke lies matters from the first step on
    return cast(nn.Module, model)


def train(model: nn.Module, steps: int, rng: np.random.RandomState) -> None:
    """Fit the model, in place, to scenes that never come twice and grow harder over the first third of the steps."""
    digits, labels = handwriting("train")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for step in (bar := tqdm(range(steps), unit="step")):
        scenes = draw_scenes(digits, labels, BATCH_SIZE, rng, difficulty=min(1.0, 3 * step / steps))
        loss = F.cross_entropy(model(scenes.images), scenes.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")


@torch.inference_mode()
def top1(model: nn.Module, scenes: Scenes) -> float:
    """Give the share of scenes whose digit the model reads right."""
    return float((model.eval()(scenes.images).argmax(dim=1) == scenes.labels).float().mean())


def main() -> None:
    """Train, save in half precision, and tell how well the saved weights read digits never seen in training."""
    parser = argparse.ArgumentParser(description="Train a small vision transformer on cluttered handwritten digits.")
    parser.add_argument("--steps", type=int, default=2800, help="batches of 64 scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the scenes (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("digits_vit.safetensors"), help="default: %(default)s")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = build_model()
    start = time.perf_counter()
    train(model, options.steps, np.random.RandomState(options.seed))
    seconds = time.perf_counter() - start

    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)  # so that the score is that of the file
    held_out = draw_scenes(*handwriting("held_out"), 2000, np.random.RandomState(options.seed + 1))
    score = f"{top1(model, held_out):.3f}"
    made_by = f"examples/train_digits_vit.py --steps {options.steps} --seed {options.seed}"
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    save_file(weights, options.output, {"made_by": made_by, "versions": versions, "held_out_top1": score})
    print(f"held-out top-1 {score} after {seconds:.0f} s: {options.output}")


if __name__ == "__main__":
    main()

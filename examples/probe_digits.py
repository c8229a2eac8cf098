"""Fit probes on a small vision transformer, and see how far each speaks for the model and where its maps point.

Run: python examples/probe_digits.py [--images N] [--model FILE.safetensors]

The model was trained by train_digits_vit.py to read one handwritten digit among fragments of others. Probes are fitted
on fresh scenes of its training digits, and all of the table is measured on scenes of digits that neither has seen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_digits_vit import build_model, draw_scenes, handwriting

import camhook
from camhook.metrics import energy_inside, pointing_game

FIXTURE = Path(__file__).parents[1] / "tests" / "data" / "digits_vit.safetensors"


def main() -> None:
    """Fit four probes and print them beside the model's own maps."""
    parser = argparse.ArgumentParser(description="Compare probes with the model they stand in for.")
    parser.add_argument("--images", type=int, default=3000, help="scenes to fit on (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=FIXTURE, help="default: the one the tests use")
    options = parser.parse_args()

    model = build_model()
    model.load_state_dict(load_file(options.model))
    cam = camhook.wrap(model)
    seen = draw_scenes(*handwriting("train"), options.images, np.random.RandomState(5))
    unseen = draw_scenes(*handwriting("held_out"), 1000, np.random.RandomState(1))

    def row(name: str, method: str, own: Tensor) -> Tensor:
        logits, inside, hits = [], [], []
        for images, labels, boxes in zip(*(part.split(100) for part in unseen), strict=True):
            result = cam(images, labels, method=method)
            maps = result.upsampled((64, 64))
            assert isinstance(maps, Tensor)
            logits.append(result.logits)
            inside.append(energy_inside(maps[:, 0], boxes))
            hits.append(pointing_game(maps[:, 0], boxes))
        scores = torch.cat(logits)
        top, own = scores.argmax(1), scores if method == "cam" else own
        agreement, accuracy = (f"{(top == c).double().mean():.3f}" for c in (own.argmax(1), unseen.labels))
        error = (scores - own).square().sum() / (own - own.mean(0)).square().sum()
        r2 = f"{1 - error:.3f}" if "labels" not in name else ""
        found = f"{torch.cat(inside).mean():.3f}", f"{torch.cat(hits).mean():.3f}"
        print(f"{name:28}{agreement:>11}{accuracy:>11}{r2:>8}{found[0]:>13}{found[1]:>11}")
        return scores

    print(f"{'':28}{'agreement':>11}{'accuracy':>11}{'R2':>8}{'inside box':>13}{'pointing':>11}")
    own = row("native map", "cam", torch.empty(0))
    for targets in ("logits", "labels"):
        for pool in ("gap", "attention"):
            data = seen.images if targets == "logits" else (seen.images, seen.labels)
            cam.fit(data, targets=targets, pool=pool, batch_size=100, progress=False)
            row(f"probe on {targets}, {pool}", "probe", own)
    print(f"{'chance':28}{0.1:>11.3f}{0.1:>11.3f}{0:>8.3f}{0.25:>13.3f}{0.25:>11.3f}")


if __name__ == "__main__":
    main()

"""Compare attribution methods on a vision transformer trained on digits among distractors, with true boxes.

Run: python examples/compare_on_digits.py [OUTPUT.html]

The model was made by `train_digits_vit.py`, which also draws the pictures, so that each digit's box is known. A digit
fills a quarter of its picture: a map that does not depend on the model has a quarter of its evidence inside.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from train_digits_vit import build_model, draw_scenes, handwriting

import camhook
from camhook.comparison import compare

output = sys.argv[1] if len(sys.argv) > 1 else "compare_on_digits.html"

model = build_model()
model.load_state_dict(load_file(Path(__file__).parents[1] / "tests" / "data" / "digits_vit.safetensors"))
images, labels, boxes = draw_scenes(*handwriting("held_out"), 32, np.random.RandomState(1))

found = compare(
    camhook.wrap(model.eval()),
    images,
    labels=labels,
    boxes=boxes,
    methods=["cam", "cam_rivals", "layer_grad_cam", "saliency", "input_x_gradient", "integrated_gradients"],
    metrics=["pointing_game", "energy_inside", "max_box_acc_v2", "insertion", "deletion", "completeness"],
    baseline=0.0,  # the background
    steps=16,
    batch_size=32,  # the pictures are small
    progress=True,
)

print(found)
found.save(output)
print(f"Wrote {output}: open it in a browser.")

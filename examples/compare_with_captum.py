"""Compare camhook's maps with Captum's attributions on two demo photos, and write an HTML report.

Run: python examples/compare_with_captum.py [OUTPUT.html]
"""

import sys

import camhook
from camhook.comparison import compare
from camhook.demo import demo_model, demo_photos

output = sys.argv[1] if len(sys.argv) > 1 else "compare_with_captum.html"
photos = demo_photos()

cam = camhook.wrap(demo_model())
found = compare(
    cam,
    [photos["chelsea.png"], photos["coffee.png"]],
    target=["tiger cat", "espresso"],
    methods=["cam", "cam_rivals", "layer_grad_cam", "saliency", "input_x_gradient", "deep_lift", "guided_backprop"],
    metrics=["insertion", "deletion", "average_drop", "complexity", "completeness"],
    steps=14,
    progress=True,
)

print(found)
for method, notes in found.notes.items():
    for note in notes:
        print(f"{method}: {note}")
found.save(output)
print(f"Wrote {output}: open it in a browser.")

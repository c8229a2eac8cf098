"""Explain one photo with two lines, then ask why this class and not its rivals.

Run: python examples/two_lines.py [OUTPUT.png]
"""

import sys

import camhook
from camhook.demo import demo_model, demo_photos

output = sys.argv[1] if len(sys.argv) > 1 else "two_lines.png"
photo = demo_photos()["chelsea.png"]

cam = camhook.wrap(demo_model())
cam(photo).save(output)

print(cam(photo, topk=2))
print(cam(photo, contrast="rivals"))

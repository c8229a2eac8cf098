"""Explain classifiers of torchvision and transformers, each with two lines.

Run: python examples/other_models.py [FOLDER]

Nothing is downloaded, so the weights are random and the pictures mean nothing: in earnest, `resnet18(weights=weights)`
and `ViTForImageClassification.from_pretrained(...)` take their place. What is not installed is skipped.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import camhook
from camhook.demo import demo_photos

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "other_models")
folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
photo = demo_photos()["chelsea.png"]

if find_spec("torchvision") is None:
    print("torchvision is not installed: pip install torchvision")
else:
    from torchvision.models import ResNet18_Weights, resnet18

    weights = ResNet18_Weights.DEFAULT  # tells how photos are preprocessed and what the classes are called
    cam = camhook.wrap(resnet18(), data_config=weights)
    cam(photo).save(folder / "resnet.png")
    print(cam.describe(), end="\n\n")

if find_spec("transformers") is None:
    print('transformers is not installed: pip install "camhook[transformers]"')
else:
    from transformers import (
        SwinConfig,
        SwinForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    vit = ViTForImageClassification(ViTConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3))
    swin = SwinForImageClassification(SwinConfig(embed_dim=48, depths=(2, 2, 2, 2)))
    processor = ViTImageProcessor()
    for name, model in (("vit", vit), ("swin", swin)):
        cam = camhook.wrap(model, data_config=processor)
        cam(photo, target=0).save(folder / f"{name}.png")
        print(cam.describe(), end="\n\n")

print(f"Pictures are in {folder}.")

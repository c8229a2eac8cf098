"""What timm, torchvision, transformers and single families say of their models: layouts, heads, preprocessing."""

from __future__ import annotations

if __name__ == "adapters":
    raise ImportError("This folder is the package camhook.adapters: write `import camhook.adapters`.")

from camhook.adapters import coat, efficientvim, layouts
from camhook.adapters.base import Adapter, Layout, adapters, register

__all__ = ["Adapter", "Layout", "adapters", "coat", "efficientvim", "layouts", "register"]

"""Adapters: layouts, heads, preprocessing and class names of the models of timm, torchvision and transformers.

All that camhook knows of these libraries by name is here. ``libraries`` answers what any model is asked, ``timm``,
``torchvision`` and ``transformers`` hold each library's part; a family that needs more has an `Adapter` in a module of
its own (``coat``, ``efficientvim``). ``base`` says how to add one.
"""

from __future__ import annotations

if __name__ == "adapters":
    raise ImportError("This folder is the package camhook.adapters: write `import camhook.adapters`.")

from camhook.adapters import coat, efficientvim, layouts
from camhook.adapters.base import Adapter, Layout, adapters, register

__all__ = ["Adapter", "Layout", "adapters", "coat", "efficientvim", "layouts", "register"]

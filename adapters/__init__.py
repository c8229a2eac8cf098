"""How each family's features become positions: one small file per way of pooling and laying them out."""

from __future__ import annotations

if __name__ == "adapters":
    raise ImportError("This folder is the package camhook.adapters: write `import camhook.adapters`.")

from camhook.adapters import branches, mean
from camhook.adapters.base import Adapter, Layout, adapters, register

__all__ = ["Adapter", "Layout", "adapters", "branches", "mean", "register"]

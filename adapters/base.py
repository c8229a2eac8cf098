"""Layout of features, Adapter declarations, and the registry of adapters.

How to add a family
-------------------
Most models need no adapter: the general one, ``layouts.MEAN``, tries the usual layouts, and the engine establishes
numerically what the head does. Add one where ``camhook.wrap`` finds no place to read, or a map that you know to be
wrong:

1. Make ``adapters/<family>.py`` with one `Adapter`: ``applies`` recognises the models (``timm.is_from_module`` for one
   of timm's modules), ``layouts`` yields the layouts that their features may have, ``target_layer`` names the module
   that holds the positions, where it is not the one whose output ``forward_head`` is given.
2. Call `register` on it, and import the module in ``adapters/__init__.py``. A package of your own needs neither: it
   names its adapter in an entry point of the group ``camhook.adapters``. Or pass ``adapter=`` to `wrap`, unregistered.
3. Check it: ``camhook describe NAME``, ``camhook check NAME``. A wrong layout is refused by the engine's numerical
   checks; the order of positions is not, so test the maps against a forward pass written out, as
   ``tests/adapters/test_adapters.py`` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

import torch
from torch import Tensor, nn

from camhook.errors import CamhookError, LayoutError

__all__ = ["Adapter", "Layout", "adapters", "any_model", "register", "shares_stride"]

ENTRY_POINT_GROUP = "camhook.adapters"


@dataclass(frozen=True)
class Layout:
    """Which axes of a features tensor are channels and which are positions.

    Parameters
    ----------
    axes
        ``"NCHW"`` for (B, C, h, w), ``"NHWC"`` for (B, h, w, C), ``"NLC"`` for (B, N, C) tokens.
    num_prefix_tokens
        How many tokens at the start (class, distillation, register tokens) belong to no position; ``"NLC"`` only.
    patch_size
        (rows, columns) of input pixels for each token, where it is known; else the grid is worked out from the input's
        aspect ratio.

    Examples
    --------
    >>> Layout("NLC", num_prefix_tokens=1).grid_size((2, 3073, 64), (1024, 768))
    (64, 48)
    """

    axes: Literal["NCHW", "NHWC", "NLC"]
    num_prefix_tokens: int = 0
    patch_size: tuple[int, int] | None = None

    def grid_size(self, shape: tuple[int, ...], input_size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (h, w) of features of that shape, made from an input of that (height, width).

        Raises
        ------
        LayoutError
            If the shape does not fit the layout, or no single grid fits the number of tokens.
        """
        if len(shape) != len(self.axes):
            raise LayoutError(
                f"Features of shape {shape} were found where {self.axes} was expected. "
                "Pass adapter= with the right layout."
            )
        if self.axes == "NCHW":
            return shape[2], shape[3]
        if self.axes == "NHWC":
            return shape[1], shape[2]
        return self.patch_grid(shape, input_size) or _grid_of(shape[1] - self.num_prefix_tokens, input_size)

    def patch_grid(self, shape: tuple[int, ...], input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the grid of patches, if the patch size is known and there are as many tokens as patches."""
        if self.patch_size is None or len(shape) != 3:
            return None
        height, width = (size // patch for size, patch in zip(input_size, self.patch_size, strict=True))
        return (height, width) if height * width == shape[1] - self.num_prefix_tokens else None

    def split(self, features: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Return the positions (B, C, h, w), a view where that can be, and the prefix tokens (B, P, C) or None."""
        if self.axes == "NCHW":
            return features, None
        if self.axes == "NHWC":
            return features.permute(0, 3, 1, 2), None
        tokens = features[:, self.num_prefix_tokens :]
        prefix = features[:, : self.num_prefix_tokens] if self.num_prefix_tokens else None
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid_size), prefix

    def join(self, positions: Tensor, prefix: Tensor | None) -> Tensor:
        """Undo `split`."""
        if self.axes == "NCHW":
            return positions
        if self.axes == "NHWC":
            return positions.permute(0, 2, 3, 1)
        tokens = positions.flatten(2).transpose(1, 2)
        return tokens if prefix is None else torch.cat((prefix, tokens), 1)


def shares_stride(grid_size: tuple[int, int], input_size: tuple[int, int]) -> bool:
    """Return whether one stride explains a grid on both axes, up to rounding at the edges.

    A stride of r gives floor(height / r) to ceil(height / r) rows.
    """
    low = max(side / (count + 1) for side, count in zip(input_size, grid_size, strict=True))
    high = min(side / (count - 1) if count > 1 else math.inf for side, count in zip(input_size, grid_size, strict=True))
    return low < high


def _grid_of(positions: int, input_size: tuple[int, int]) -> tuple[int, int]:
    """Return the (h, w) with h * w = positions that one stride explains on both axes, up to rounding at the edges."""
    height, width = input_size
    grids = [(h, positions // h) for h in range(1, positions + 1) if positions % h == 0]
    fits = sorted(
        (abs(math.log(h * width / (w * height))), h, w) for h, w in grids if shares_stride((h, w), input_size)
    )
    if not fits or (len(fits) > 1 and math.isclose(fits[0][0], fits[1][0], abs_tol=1e-9)):
        raise LayoutError(
            f"{positions} tokens from an input of {height} x {width} pixels fit "
            f"{'no grid' if not fits else 'several grids'} with one stride on both axes. "
            "Pass adapter= with a Layout that states num_prefix_tokens and patch_size."
        )
    return fits[0][1:]


def any_model(model: nn.Module) -> bool:
    """Return True: the default ``applies`` of an adapter, which makes it a general one."""
    return True


@dataclass(frozen=True)
class Adapter:
    """Layouts of a family's features, and the modules that hold them.

    Parameters
    ----------
    name
        Unique name, shown by ``describe()``.
    layouts
        Given the model and the shape of the features, the layouts that may apply, most likely first. The engine takes
        the first that passes its numerical check.
    applies
        Whether the adapter is for this model; by default for every model, which makes it a *general* adapter.
    target_layer
        Name of the module whose output holds the positions, where it is not what ``forward_head`` is given; prefixed
        by ``"input of "``, the module whose input does. Or a function from the model to such a name, or to several
        names, of all the places that the score is read from.
    reads
        For a model with class tokens: names of the modules within which a class token's attention counts, where other
        modules' class tokens are dropped on the way to the logits.
    priority
        Adapters of a higher priority are asked first; negative for one that only fills in.

    Examples
    --------
    >>> class Cells(nn.Module):
    ...     pass
    >>> Adapter("cells", lambda model, shape: [Layout("NHWC")], applies=lambda model: isinstance(model, Cells)).name
    'cells'
    """

    name: str
    layouts: Callable[[nn.Module, tuple[int, ...]], Iterable[Layout]]
    applies: Callable[[nn.Module], bool] = any_model
    target_layer: str | Callable[[nn.Module], str | Sequence[str]] | None = None
    reads: Callable[[nn.Module], Sequence[str]] | None = None
    priority: int = 0

    def layers(self, model: nn.Module) -> list[str] | None:
        """Return the names of this model's layers that hold the positions; None where the adapter names none."""
        layers = self.target_layer(model) if callable(self.target_layer) else self.target_layer
        if layers is None:
            return None
        return [layers] if isinstance(layers, str) else list(layers)


_registry: dict[str, Adapter] = {}
_loaded_entry_points = False


def register(adapter: Adapter) -> Adapter:
    """Add an adapter to the registry; see `adapters` for the order in which they are asked.

    Third parties register without being imported through an entry point of the group ``camhook.adapters`` that names
    an `Adapter`.

    Raises
    ------
    CamhookError
        If another adapter has that name.
    """
    if _registry.get(adapter.name, adapter) is not adapter:
        raise CamhookError(f"An adapter named {adapter.name!r} is registered already. Give yours another name.")
    _registry[adapter.name] = adapter
    return adapter


def adapters() -> list[Adapter]:
    """Return the registered adapters in the order in which they are asked.

    By priority, highest first; of one priority, those of a family (with ``applies``) before general ones; among these,
    later registered ones first. So a family's adapter is asked before the general ones whenever it was imported.

    Raises
    ------
    CamhookError
        If the adapter of an installed package cannot be loaded.
    """
    global _loaded_entry_points
    if not _loaded_entry_points:
        for entry_point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                adapter = entry_point.load()
            except Exception as error:  # an installed package may raise anything on import
                raise CamhookError(
                    f"The adapter {entry_point.name!r} ({entry_point.value}) of an installed package cannot be loaded: "
                    f"{error!r}. Mend or uninstall that package."
                ) from error
            register(adapter)
        _loaded_entry_points = True
    later_first = reversed(_registry.values())
    return sorted(later_first, key=lambda each: (each.priority, each.applies is not any_model), reverse=True)

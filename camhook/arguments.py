"""The tensors among a torch function's arguments: in the open, or in a list of tensors (`cat`, `stack`, an index).

Modes see every call of a tail; torch's own pytree takes many times longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["mapped", "tensors_of"]


def tensors_of(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
    """Return the tensors among arguments, or in what a function gave.

    Examples
    --------
    >>> len(tensors_of(([Tensor(1), Tensor(2)], 0), {"out": None, "weight": Tensor(3)}))
    3
    """
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_of(value)
    return found


def mapped(change: Callable[[Any], Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments with each that is no list changed, in lists too."""

    def one(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(one, value))
        return change(value)

    return tuple(map(one, args)), {name: one(value) for name, value in kwargs.items()}

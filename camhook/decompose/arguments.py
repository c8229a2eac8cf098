"""Tensors among the arguments of torch functions, and the set of tensors computed from given ones.

Every torch-function mode of camhook sees each call of a tail, so these are written for speed: torch's own pytree takes
many times longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Dependents", "mapped", "tensors_of"]


def tensors_of(args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
    """Return the tensors among arguments or results, those in lists and tuples (`cat`, `stack`, an index) included.

    Examples
    --------
    >>> len(tensors_of(([Tensor(1), Tensor(2)], 0), {"out": None, "weight": Tensor(3)}))
    3
    """
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple) and value:
            found += tensors_of(value)
    return found


def mapped(change: Callable[[Any], Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Return positional and keyword arguments with `change` applied to each value, elements of lists included."""

    def one(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(one, value))
        return change(value)

    return tuple(map(one, args)), {name: one(value) for name, value in kwargs.items()}


class Dependents:
    """The tensors of a run that depend on given ones: a mode adds the result of each call that takes one of them.

    Tensors are held weakly and told apart by identity.

    Examples
    --------
    >>> x = Tensor(2)
    >>> dependents = Dependents([x])
    >>> y = dependents.add(x + 1)
    >>> dependents.among([Tensor(2), y]) is y, dependents.among([Tensor(2)]) is None
    (True, True)
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._known = WeakIdKeyDictionary()
        for tensor in tensors:
            self._known[tensor] = None

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._known

    def among(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the first of these tensors that is known to depend on the given ones."""
        for tensor in tensors:
            if tensor in self._known:
                return tensor
        return None

    def add(self, result: Any) -> Any:
        """Add the tensors in the result of a call, and return the result."""
        if isinstance(result, Tensor):
            self._known[result] = None
        elif isinstance(result, list | tuple):
            for tensor in tensors_of(result):
                self._known[tensor] = None
        return result

"""Selection of the logits among what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from camhook.engine.tail import Output
from camhook.errors import UnsupportedModelError

__all__ = ["Selector", "described"]


@dataclass(frozen=True)
class Selector:
    """Picks the logits; by default, the ``logits`` of an output that has such.

    One score per image, (B,), counts as one class.

    Parameters
    ----------
    output
        An index, a key, an attribute name or a function; None for the default.
    """

    output: Output | str | int | None = None

    def __call__(self, returned: Any) -> Any:
        """Return the logits among what a model returned.

        Raises
        ------
        UnsupportedModelError
            If there are none.
        """
        try:
            found = self._pick(returned)
        except (LookupError, AttributeError, TypeError) as error:
            raise UnsupportedModelError(
                f"output={self.output!r} is not in what the model returned: {described(returned)}. Pass an index, a "
                "key, an attribute name or a function that picks the logits (B, K)."
            ) from error
        return found[:, None] if isinstance(found, Tensor) and found.ndim == 1 else found

    def _pick(self, returned: Any) -> Any:
        output = self.output
        if callable(output):
            return output(returned)
        if output is None:
            if isinstance(returned, Mapping):
                return returned.get("logits", returned)
            return returned if isinstance(returned, Tensor) else getattr(returned, "logits", returned)
        if isinstance(output, int) or isinstance(returned, Mapping):
            return returned[output]
        return getattr(returned, output)


def described(returned: Any) -> str:
    """Describe in words what a model returned."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        items = [f"{key!r}: {described(value)}" for key, value in returned.items()]
    elif isinstance(returned, tuple | list):
        items = [f"{index}: {described(value)}" for index, value in enumerate(returned)]
    else:
        return type(returned).__name__
    return f"{type(returned).__name__} of {', '.join(items)}"

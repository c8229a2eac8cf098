"""Class names, and the indices of the classes to explain, given by index or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from camhook.errors import TargetError
from camhook.suggestions import hint

__all__ = ["ClassNames", "class_index", "explained_position", "resolve_targets"]


class ClassNames:
    """The names of a model's classes.

    Parameters
    ----------
    names
        One name per class, in order or by index. A name may hold synonyms, separated by commas: ``"tabby, tabby cat"``.

    Examples
    --------
    >>> names = ClassNames(["tabby, tabby cat", "crane", "crane, derrick"])
    >>> names.index("Tabby"), names.label(1), names.label(7)
    (0, 'crane', 'class 7')
    """

    def __init__(self, names: Sequence[str] | Mapping[int, str] = ()) -> None:
        items = names.items() if isinstance(names, Mapping) else enumerate(names)
        self._names = {int(index): str(name) for index, name in items}

    def __len__(self) -> int:
        return len(self._names)

    def label(self, index: int) -> str:
        """Return a class's first name, or its number where it has none."""
        return self._names[index].split(",")[0] if index in self._names else f"class {index}"

    def index(self, name: str) -> int:
        """Return the index of the class of that name; case is ignored.

        Raises
        ------
        TargetError
            If no class has it (near matches are listed) or several do (they are listed).
        """
        wanted = name.strip().lower()
        if not self._names:
            raise TargetError(
                f"The class {name!r} was asked for, but no class names are known. Pass class_names= to wrap."
            )
        whole = [index for index, full in self._names.items() if full.lower() == wanted]
        found = [i for i, full in self._names.items() if wanted in (part.strip().lower() for part in full.split(","))]
        if len(found) == 1 or (len(whole) == 1 and "," in wanted):
            return (whole if len(whole) == 1 else found)[0]
        if found:
            listed = ", ".join(f"{index} ({self._names[index]})" for index in found)
            raise TargetError(f"The name {name!r} is ambiguous: classes {listed}. Pass the index.")
        parts = {part.strip() for full in self._names.values() for part in full.split(",")}
        advice = hint(wanted, sorted(parts), count=5, otherwise="Pass the index, or class_names= to wrap.")
        raise TargetError(f"No class is named {name!r}. {advice}")


def resolve_targets(target: Any, topk: int | None, logits: Tensor, names: ClassNames) -> Tensor:
    """Return the indices (B, T) of the classes to explain.

    Parameters
    ----------
    target
        None (the predicted class), ``"all"``, a class (index or name) for every image, a list or 1-d tensor of one
        class per image, a list of lists or (B, T) tensor of several per image.
    topk
        How many classes, those with the highest logits, instead of a target.
    logits
        The model's, (B, K).

    Raises
    ------
    TargetError
        If a class does not exist, or the lengths do not match the images.
    """
    batch, count = logits.shape
    if topk is not None:
        if target is not None:
            raise TargetError(f"Both target={target!r} and topk={topk} were given. Pass one of them.")
        if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= count:
            raise TargetError(f"topk={topk!r}: an integer from 1 to {count} (the number of classes) was expected.")
        return logits.topk(topk, dim=1).indices
    if target is None:
        return logits.argmax(1, keepdim=True)
    if isinstance(target, str) and target == "all":
        return torch.arange(count, device=logits.device).expand(batch, count)
    if isinstance(target, Tensor) or hasattr(target, "tolist"):
        target = target.tolist()
    if not isinstance(target, list | tuple):
        target = [[target]] * batch
    rows = [list(row) if isinstance(row, list | tuple) else [row] for row in target]
    if len(rows) != batch:
        raise TargetError(
            f"{len(rows)} targets were given for {batch} image{'s' * (batch != 1)}. Pass one class for all, a list of "
            "one class per image, or a list of lists for several classes per image (for one image: [[281, 282]])."
        )
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise TargetError(
            f"Every image needs the same number of targets, at least one; found {[len(r) for r in rows]}."
        )
    indices = [[class_index(item, count, names) for item in row] for row in rows]
    return torch.tensor(indices, device=logits.device)


def class_index(item: Any, count: int, names: ClassNames) -> int:
    """Return the index of a class given by index or name; ``count`` is the number of classes.

    Raises
    ------
    TargetError
        If there is no such class.
    """
    if isinstance(item, str):
        item = names.index(item)
    if isinstance(item, bool) or not isinstance(item, int):
        raise TargetError(f"A target is a class index or name; found {item!r} ({type(item).__name__}).")
    if not 0 <= item < count:
        raise TargetError(f"Class {item} does not exist: the model has {count} classes, 0 to {count - 1}.")
    return item


def explained_position(target: int | str, explained: Sequence[int], names: ClassNames, *, image: int) -> int:
    """Return where a class, by index or name, stands among those that were explained for an image.

    Raises
    ------
    TargetError
        If it is not among them.
    """
    wanted = names.index(target) if isinstance(target, str) else int(target)
    if wanted not in explained:
        known = ", ".join(f"{index} ({names.label(index)})" for index in explained[:10])
        raise TargetError(f"Class {target!r} was not explained for image {image}; explained: {known}. Call cam again.")
    return explained.index(wanted)

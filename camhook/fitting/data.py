"""Where images come from: a folder, a data set, a loader, a stream of batches, features from before."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from camhook.errors import CamhookError, ImageError
from camhook.fitting.caches import FeatureCache
from camhook.fitting.items import ADVICE, Indexed, Pooled, Source, Stream, is_batch, likely_columns
from camhook.images.loading import photo_files

__all__ = ["as_source"]

_log = logging.getLogger(__name__)


def as_source(data: Any, columns: tuple[str, str] | None = None) -> Source:
    """Tell what kind of data this is.

    Parameters
    ----------
    data
        See `camhook.fitting.fit.fit`.
    columns
        Names of the image and of the label, where items are dictionaries; default: found by type, then by name.

    Raises
    ------
    CamhookError, ImageError
        It is none, or empty.

    Examples
    --------
    >>> source = as_source((torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])))
    >>> source.size, source.labels.tolist()
    (4, [0, 1, 1, 0])
    """
    if isinstance(data, str | os.PathLike):
        return _folder(Path(data))
    if isinstance(data, FeatureCache):
        return Pooled(data.features, data.targets, data.weights)
    if isinstance(data, Tensor) or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)):
        return _tensors(data)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return _hugging_face(data, columns)
    if isinstance(data, DataLoader):
        return _loader(data, columns)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping | IterableDataset):
        if len(data) == 0:
            raise CamhookError(f"Found no images: {type(data).__name__} is empty. {ADVICE}.")
        if not (isinstance(data, Sequence) and is_batch(data[0])):
            return _dataset(data, columns)
    if isinstance(data, Iterable) and not isinstance(data, Mapping):
        return Stream(data, _names(data), columns)
    raise CamhookError(f"Found {type(data).__name__} as data. {ADVICE}.")


def _tensors(data: Any) -> Source:
    values, targets = data if isinstance(data, tuple) else (data, None)
    targets = None if targets is None else torch.as_tensor(targets)
    if values.ndim not in (2, 4) or not len(values) or (targets is not None and len(targets) != len(values)):
        found = f"tensors of shape {tuple(values.shape)}" + ("" if targets is None else f" and {tuple(targets.shape)}")
        raise CamhookError(f"Found {found}, expected images (N, C, H, W) or features (N, C), a target each.")
    if values.ndim == 2:
        if targets is None:
            raise CamhookError("Found features (N, C) without targets; pass a pair (features, targets).")
        return Pooled(values, targets, torch.ones(len(values), dtype=torch.float64))
    labels = targets if targets is not None and targets.ndim == 1 and not targets.is_floating_point() else None
    return Indexed(
        len(values),
        _Pairs(values, targets),
        lambda i: f"image {i}",
        {"kind": "tensors", "shape": list(values.shape)},
        labels=None if labels is None else labels.long().cpu(),
    )


def _folder(root: Path) -> Indexed:
    if not root.is_dir():
        raise ImageError(f"{root} is no folder, seen from {os.getcwd()}; pass the folder that holds the images.")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        files, numbers = list(photo_files([root])), None
    else:
        each = [list(photo_files([folder])) for folder in folders]  # an empty one is an error that names it
        files = [file for found in each for file in found]
        numbers = torch.arange(len(each)).repeat_interleave(torch.tensor([len(found) for found in each]))
        if loose := sum(1 for p in root.iterdir() if p.is_file()):
            _log.warning("%d files in %s lie in no class's folder and are left out", loose, root)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return Indexed(
        len(files),
        _Pairs(files, numbers),
        lambda i: str(files[i].relative_to(root)),
        {"kind": "folder", "images": len(files), "content": digest.hexdigest()[:32]},
        class_names=tuple(folder.name for folder in folders),
        labels=numbers,
    )


def _dataset(data: Any, columns: tuple[str, str] | None) -> Indexed:
    names = _names(data)
    files = getattr(data, "imgs", None) or getattr(data, "samples", None)  # torchvision's image folders

    def name(index: int) -> str:
        item = files[index] if isinstance(files, list) and len(files) == len(data) else None
        item = data[index] if item is None and isinstance(data, list) else item
        file = item[0] if isinstance(item, tuple | list) else item
        return os.fsdecode(file) if isinstance(file, str | os.PathLike) else f"image {index}"

    return Indexed(
        len(data),
        data,
        name,
        {"kind": type(data).__name__, "images": len(data)},
        class_names=names,
        labels=_whole(getattr(data, "targets", None), len(data)),
        columns=columns,
    )


def _loader(loader: DataLoader[Any], columns: tuple[str, str] | None) -> Source:
    data = loader.dataset
    plain = isinstance(loader.sampler, SequentialSampler) or (
        isinstance(loader.sampler, RandomSampler)
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(data)  # type: ignore[arg-type]
    )
    if isinstance(data, IterableDataset) or loader.batch_size is None or not plain:
        return Stream(loader, _names(data), columns)
    found = as_source(data, columns)
    if not isinstance(found, Indexed):
        return Stream(loader, _names(data), columns)
    own = loader.collate_fn if loader.collate_fn is not torch.utils.data.default_collate else None
    workers = {"batch_size": loader.batch_size, "num_workers": loader.num_workers}
    return Indexed(**{**vars(found), **workers, "collate": own})


def _hugging_face(data: Any, columns: tuple[str, str] | None) -> Source:
    features = data.features or {}
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    guessed = likely_columns(features)
    image = next((name for name, kind in kinds.items() if kind == "Image"), guessed[0])
    label = next((name for name, kind in kinds.items() if kind == "ClassLabel"), guessed[1])
    image, label = columns or (image, label)
    feature = features.get(label)
    each = getattr(feature, "feature", None)  # of a list of classes
    names = tuple(getattr(feature, "names", None) or getattr(each, "names", None) or ())

    rows = _Table(data, image, label, len(names) if each is not None else 0)
    if not hasattr(data, "__len__"):  # an IterableDataset
        return Stream(map(rows.pair, data), names)
    if image not in data.column_names:
        raise CamhookError(f"Found columns {', '.join(data.column_names)}; pass columns=(image, label), by name.")
    numbers = _whole(data[label][:], len(data)) if kinds.get(label) == "ClassLabel" else None
    identity = {"kind": "datasets.Dataset", "images": len(data), "fingerprint": getattr(data, "_fingerprint", "")}
    identity |= {"columns": [image, label]}
    return Indexed(len(data), rows, lambda i: f"image {i}", identity, names, numbers)


def _names(data: Any) -> tuple[str, ...]:
    found = getattr(data, "classes", None)
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def _whole(labels: Any, size: int) -> Tensor | None:
    """Return labels (N,) as a tensor, if that is what they are."""
    try:
        found: npt.NDArray[Any] = np.asarray(labels)
    except (ValueError, TypeError):
        return None
    if found.shape != (size,) or not np.issubdtype(found.dtype, np.integer):
        return None
    return torch.from_numpy(found.astype(np.int64))


@dataclass
class _Pairs:
    """Images and, if there are any, their labels, side by side."""

    images: Any
    labels: Tensor | None

    def __getitem__(self, index: int) -> Any:
        return self.images[index] if self.labels is None else (self.images[index], self.labels[index])


@dataclass
class _Table:
    """Rows of a datasets.Dataset as pairs; a list of classes becomes 0 or 1 for each of so many."""

    data: Any
    image: str
    label: str
    several: int

    def __getitem__(self, index: int) -> Any:
        return self.pair(self.data[index])

    def pair(self, row: Any) -> Any:
        """Return the image and the label of a row."""
        label = row.get(self.label)
        if self.several:
            label = np.bincount(np.asarray(label, dtype=np.int64), minlength=self.several).clip(max=1)
        return row[self.image], label

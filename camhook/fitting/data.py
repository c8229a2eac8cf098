"""Data of any kind as a source: folders, datasets, loaders, tensors, streams of batches, and features pooled before."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from camhook.errors import CamhookError, ImageError
from camhook.fitting.batches import ADVICE, Images, is_batch, labels_of, likely_columns, split
from camhook.fitting.rows import Rows
from camhook.fitting.shards import FeatureStore
from camhook.images.loading import Batch, photo_files

__all__ = ["Source", "as_source", "known_labels"]

_log = logging.getLogger(__name__)


Source = Images | FeatureStore


def as_source(data: Any, columns: tuple[str, str] | None = None) -> Source:
    """Return the data as a source, whatever they are.

    Parameters
    ----------
    data
        See `camhook.fitting.fit.fit`.
    columns
        Names of the image and of the label, where items are dictionaries; default: found by type, then by name.

    Raises
    ------
    CamhookError, ImageError
        If they are no images, or empty.

    Examples
    --------
    >>> source = as_source((torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])))
    >>> source.size, source.labels.tolist()
    (4, [0, 1, 1, 0])
    """
    if isinstance(data, FeatureStore):
        return data
    if isinstance(data, str | os.PathLike):
        return FeatureStore(data) if FeatureStore.is_at(Path(data)) else _folder(Path(data))
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
        return Images(data, class_names=_names(data), columns=columns)
    raise CamhookError(f"Found {type(data).__name__} as data. {ADVICE}.")


def known_labels(source: Source, first: Batch[int] | None, num_features: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the label of the first image, and those of all where they are known before the images are read."""
    if not isinstance(source, FeatureStore):
        found = None if first is None else labels_of(first)
        return None if found is None else found[0], source.labels
    rows = next(source.blocks(), None)
    if rows is None:
        raise CamhookError(f"Found no rows of features: the data are empty. {ADVICE}.")
    if (columns := rows.features.shape[1]) != num_features:
        raise CamhookError(f"Found {columns} pooled features, expected the model's {num_features}.")
    return rows.targets[0], source.column("targets") if rows.targets.ndim == 1 else None


def _tensors(data: Any) -> Source:
    values, targets = data if isinstance(data, tuple) else (data, None)
    targets = None if targets is None else torch.as_tensor(targets).cpu()
    if values.ndim not in (2, 4) or not len(values) or (targets is not None and len(targets) != len(values)):
        found = f"tensors of shape {tuple(values.shape)}" + ("" if targets is None else f" and {tuple(targets.shape)}")
        raise CamhookError(f"Found {found}, expected images (N, C, H, W) or features (N, C), a target each.")
    if values.ndim == 2:
        if targets is None:
            raise CamhookError("Found features (N, C) without targets; pass a pair (features, targets).")
        return FeatureStore.of(Rows.of(range(len(values)), values, targets))
    some = values[:: max(1, len(values) // 16)].detach().cpu().float().contiguous()
    digest = hashlib.sha256(some.numpy().tobytes()).hexdigest()[:32]
    return Images(
        _Pairs(values, targets),
        len(values),
        {"kind": "tensors", "shape": list(values.shape), "content": digest},
        labels=None if targets is None else _numbers(targets.numpy(), len(values)),
    )


def _folder(root: Path) -> Images:
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
            _log.warning("%d files in %s are in no class's folder and are left out", loose, root)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return Images(
        _Pairs(files, numbers),
        len(files),
        {"kind": "folder", "images": len(files), "content": digest.hexdigest()[:32]},
        lambda i: str(files[i].relative_to(root)),
        class_names=tuple(folder.name for folder in folders),
        labels=numbers,
    )


def _dataset(data: Any, columns: tuple[str, str] | None) -> Images:
    names = _names(data)
    files = getattr(data, "imgs", None) or getattr(data, "samples", None)  # torchvision's image folders
    pairs = [split(item, columns)[1] for item in data] if isinstance(data, list) else getattr(data, "targets", None)

    def name(index: int) -> str:
        item = files[index] if isinstance(files, list) and len(files) == len(data) else None
        item = data[index] if item is None and isinstance(data, list) else item
        file = item[0] if isinstance(item, tuple | list) else item
        return os.fsdecode(file) if isinstance(file, str | os.PathLike) else f"image {index}"

    identity = {"kind": type(data).__name__, "images": len(data)}
    return Images(data, len(data), identity, name, names, _numbers(pairs, len(data)), columns)


def _loader(loader: DataLoader[Any], columns: tuple[str, str] | None) -> Source:
    data = loader.dataset
    plain = isinstance(loader.sampler, SequentialSampler) or (
        isinstance(loader.sampler, RandomSampler)
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(data)  # type: ignore[arg-type]
    )
    if isinstance(data, IterableDataset) or loader.batch_size is None or not plain:
        return Images(loader, class_names=_names(data), columns=columns)
    found = as_source(data, columns)
    if not isinstance(found, Images) or found.size is None:
        return Images(loader, class_names=_names(data), columns=columns)
    own = loader.collate_fn if loader.collate_fn is not torch.utils.data.default_collate else None
    return replace(found, batch_size=loader.batch_size, num_workers=loader.num_workers, collate=own)


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
        return Images(map(rows.pair, data), class_names=names)
    if image not in data.column_names:
        raise CamhookError(f"Found columns {', '.join(data.column_names)}; pass columns=(image, label), by name.")
    numbers = _numbers(data[label][:], len(data)) if kinds.get(label) == "ClassLabel" else None
    identity = {"kind": "datasets.Dataset", "images": len(data), "fingerprint": getattr(data, "_fingerprint", "")}
    return Images(rows, len(data), identity | {"columns": [image, label]}, class_names=names, labels=numbers)


def _names(data: Any) -> tuple[str, ...]:
    found = getattr(data, "classes", None)
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def _numbers(labels: Any, size: int) -> Tensor | None:
    """Return labels as a tensor, if they are integers (N,) or numbers (N, K)."""
    try:
        found: npt.NDArray[Any] = np.asarray(labels)
    except (ValueError, TypeError):
        return None
    if found.shape == (size,) and np.issubdtype(found.dtype, np.integer):
        return torch.from_numpy(found.astype(np.int64))
    several = found.ndim == 2 and len(found) == size and np.issubdtype(found.dtype, np.number)
    return torch.from_numpy(found) if several else None


@dataclass
class _Pairs:
    """Images and, if there are any, their labels, side by side."""

    images: Any
    labels: Tensor | None

    def __getitem__(self, index: int) -> Any:
        return self.images[index] if self.labels is None else (self.images[index], self.labels[index])


@dataclass
class _Table:
    """Rows of a datasets.Dataset as pairs; a list of classes becomes 0 or 1 for each class."""

    data: Any
    image: str
    label: str
    num_classes: int

    def __getitem__(self, index: int) -> Any:
        return self.pair(self.data[index])

    def pair(self, row: Any) -> Any:
        """Return the image and the label of a row."""
        label = row.get(self.label)
        if self.num_classes:
            label = np.bincount(np.asarray(label, dtype=np.int64), minlength=self.num_classes).clip(max=1)
        return row[self.image], label

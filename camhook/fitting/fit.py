"""Fit of a linear probe: pooled features of a frozen model, a solver, and what was measured on images held out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from camhook.distributed import Ranks
from camhook.errors import CamhookError, DependencyError
from camhook.fitting.batches import Images, first_batch, rank_batches
from camhook.fitting.data import as_source, known_labels
from camhook.fitting.epoch import FeatureExtractor, FeatureFacts, extract_rows, run_epoch
from camhook.fitting.probe import Probe
from camhook.fitting.reports import FitReport, make_report
from camhook.fitting.rows import Rows
from camhook.fitting.shards import FeatureStore
from camhook.fitting.solvers import Solution, solve_logistic, solve_ridge
from camhook.fitting.state import FitState
from camhook.fitting.targets import Targets, find_targets
from camhook.images.loading import Batch

__all__ = ["fit"]

_log = logging.getLogger(__name__)

Path = str | os.PathLike[str]


def fit(
    extractor: FeatureExtractor,
    data: Any,
    *,
    targets: Literal["labels", "logits"] = "labels",
    solver: Literal["ridge", "logistic"] = "ridge",
    penalty: float | Sequence[float] | None = None,
    standardize: bool | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    class_weight: Literal["balanced"] | Sequence[float] | Tensor | None = None,
    sample_weight: Sequence[float] | Tensor | None = None,
    columns: tuple[str, str] | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    folds: int = 5,
    holdout: float = 0.1,
    capacity: int = 5000,
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: float = 60.0,
    cache: Path | None = None,
    max_skipped: float = 0.05,
    progress: bool = True,
) -> tuple[FitReport, Probe]:
    """Fit a linear probe on the pooled features of a frozen model.

    One epoch over the images; nothing of the model changes. Under torch.distributed the ranks share the images, none
    twice, and all get the probe that a single process would get.

    Parameters
    ----------
    extractor : FeatureExtractor
        The frozen model.
    data
        A folder with a folder of images per class (any folder of images for ``targets="logits"``); a torch Dataset or
        DataLoader; a datasets.Dataset; a sequence or other iterable of images or of (image, label), one by one or in
        batches (images, labels); tensors (images, labels); or features pooled before: a folder of shards that an
        earlier fit wrote, a `FeatureStore`, or tensors (features (N, C), targets). Photos are preprocessed as the model
        needs it, tensors (C, H, W) are taken as they are. A label is a class number, or 0 or 1 for each class.
    targets : str
        ``"labels"``: the classes of the data. ``"logits"``: the model's own logits; no labels are needed, and where
        folders are named after the model's classes, accuracy is measured too.
    solver : str
        ``"ridge"``: least squares in closed form; memory does not grow with the data. ``"logistic"``: scikit-learn's
        LogisticRegression, which has all features in memory, 12 bytes each, and some arrays (N, K) of 8.
    penalty : float or several
        On the squared weights; of several the best by cross-validation. Default: a grid (ridge), 1 (logistic).
    standardize : bool
        Penalise as if features had a standard deviation of 1. Default: for logistic.
    class_names, num_classes
        Of the labels, where the data do not say.
    class_weight
        ``"balanced"``, so that all classes weigh the same, or a weight for each class (K,).
    sample_weight
        A weight for each image (N,), by its number in the data.
    columns : (str, str)
        Names of image and label, where items are dictionaries.
    batch_size, num_workers : int
        Default: the DataLoader's own, else 32 and 0.
    folds, holdout, capacity, seed
        Folds of the cross-validation; the share of images held out to measure on, at most ``capacity`` of them; both
        are decided by a hash of the image's number.
    checkpoint : path
        A folder for shards of pooled features, written as the fit goes; the same call goes on from it. Another one with
        the same model and images (other labels, weights, penalty, solver, folds) does not run the model again. It takes
        4 bytes per feature on disk (8 KiB an image for ResNet-50), and per logit with ``targets="logits"``.
    checkpoint_every : float
        Seconds between two shards.
    cache : path
        The same; it is used where both are given. Without either, ridge keeps no features, and logistic in memory.
    max_skipped : float
        Share of images that may be unreadable; these are skipped and listed.
    progress : bool
        Show a progress bar.

    Returns
    -------
    report : FitReport
        How faithful the probe is, measured on images held out.
    probe : Probe

    Raises
    ------
    CamhookError
        If the data cannot be fitted to; it says what was found, what was expected and what to do.
    ImageError
        If more images cannot be read than may be.
    DependencyError
        If scikit-learn is not installed and ``solver="logistic"``.
    KeyboardInterrupt
        After Ctrl-C, once the rows at hand are written.

    Notes
    -----
    Ridge sums (C + K) C doubles per fold, whatever the number of images; the hold-out takes ``capacity`` rows of C
    doubles, and a byte says of each image whether it is done. Every rank has that. Labels known before an image is read
    (folders, tensors, lists, ``.targets``, columns of classes) are always the data's; others are stored with features.

    Measured on one CPU core, C = 2,048 and K = 1,000: moments take 0.36 ms an image beside 60 ms for a ResNet-18, and
    238 MiB; a full hold-out takes 80 MiB, the solve 3 s, or 23 s with 21 penalties. The 1.28 million images of
    ImageNet-1k take 10.5 GB as shards.

    Examples
    --------
    >>> import timm, camhook
    >>> cam = camhook.wrap(timm.create_model("test_resnet", num_classes=0))
    >>> images, labels = torch.randn(60, 3, 160, 160), torch.arange(60) % 2
    >>> report = cam.fit((images + labels.view(-1, 1, 1, 1), labels), class_names=["dark", "bright"], progress=False)
    >>> report.num_classes, report.fidelity.top1
    (2, 1.0)
    """
    _check_options(targets, solver, max_skipped)
    source, folder = as_source(data, columns), checkpoint if cache is None else cache
    if isinstance(source, Images) and source.size is None and (folder is not None or solver == "logistic"):
        raise CamhookError(
            "Found data that come as a stream: without numbers of its images a killed fit cannot go on, and without a "
            "length 'logistic' cannot know how much it keeps. Pass data with a length (a folder, a Dataset, a list), "
            "or leave out checkpoint=, cache= and 'logistic'."
        )
    first = None
    if not isinstance(source, FeatureStore):
        first, source = first_batch(source, extractor.preprocessing)
    facts = extractor.facts(None if first is None or first.images is None else first.images.shape[-2:])
    label, labels = known_labels(source, first, facts.num_features)
    stored_logits = targets == "logits" and isinstance(source, FeatureStore)
    num_logits = label.numel() if stored_logits and label is not None else facts.num_logits
    goal = find_targets(
        kind=targets,
        first=label,
        labels=labels,
        num_logits=num_logits,
        model_names=facts.class_names,
        data_names=class_names if class_names is not None else getattr(source, "class_names", ()),
        num_classes=num_classes,
        class_weight=class_weight,
        sample_weight=sample_weight,
        size=None if isinstance(source, FeatureStore) else source.size,
    )
    device = extractor.device if extractor.device.type == "cuda" else torch.device("cpu")
    options: dict[str, Any] = {"folds": folds, "holdout": holdout, "capacity": capacity, "seed": seed}
    state = FitState(facts.num_features, goal.num_classes, targets=goal.kind, **options, device=device)
    ranks = Ranks.of_process_group(device)
    if isinstance(source, FeatureStore):
        store, goal = source, replace(goal, labels=None)  # rows of the store have their own
        pooled = {"fingerprint": facts.fingerprint, "layer": facts.target_layer, "pool": facts.pooling}
        store.check_run({**pooled, "targets": targets})
    else:
        run = _run(facts, source, targets, None if label is None or labels is not None else label)
        store, done = FeatureStore.opened(folder, run, source.size or 0, ranks)
    assigned = store.assigned(ranks)
    ranks.agreed(lambda: [state.update(goal.of(rows)) for rows in store.blocks(assigned)])
    if not isinstance(source, FeatureStore):
        left = "a stream of" if source.size is None else f"{source.size - int(done.sum()):,}"
        place = f"{facts.model} at {facts.target_layer}, pooled by {facts.pooling}"
        _log.info("reading %s images through %s, on %d process(es)", left, place, ranks.world)
        keep = folder is not None or solver == "logistic"

        def consume(batch: Batch[int]) -> None:
            rows = extract_rows(extractor, batch, targets).to(device)
            state.update(goal.of(rows))
            if keep:
                store.append(rows)

        workers = source.num_workers if num_workers is None else num_workers
        batches = rank_batches(
            source,
            done,
            extractor.preprocessing,
            ranks,
            batch_size=batch_size or source.batch_size or 32,
            num_workers=workers or 0,
            pin_memory=device.type == "cuda",
        )
        limits = {"every": checkpoint_every, "max_skipped": max_skipped}
        run_epoch(batches, consume, store, ranks, source, done=int(done.sum()), **limits, progress=progress)
    state.all_reduce(ranks)
    store.share_skipped(ranks)
    _log.info("solving (%s): %d features, %d classes", solver, facts.num_features, goal.num_classes)
    started = time.perf_counter()
    rows = store.gathered(ranks) if solver == "logistic" else []
    solution = ranks.agreed(partial(_solve, state, goal, rows, penalty, standardize), first_only=True)
    report, probe = make_report(
        facts,
        state,
        solution,
        solver=solver,
        goal=goal,
        skipped=store.skipped,
        seconds=ranks.gathered(store.seconds)[0],
        solve_seconds=time.perf_counter() - started,
    )
    _log.info("measured on %d images held out", report.fidelity.images)
    return report, probe


def _run(facts: FeatureFacts, source: Images, targets: str, label: Tensor | None) -> dict[str, Any]:
    """Return what stored rows depend on; the first label stands for those that only reading the images tells."""
    return {
        "model": facts.model,
        "fingerprint": facts.fingerprint,
        "layer": facts.target_layer,
        "pool": facts.pooling,
        "autocast": facts.precision,
        "preprocessing": dict(facts.preprocessing),
        "targets": targets,
        "data": dict(source.identity),
        "label": None if label is None else label.tolist(),
    }


def _solve(state: FitState, goal: Targets, stored: Sequence[Rows], penalty: Any, standardize: bool | None) -> Solution:
    """Return the head: ridge regression from moments or, if there are rows, logistic regression on those to fit on."""
    if not stored:
        return solve_ridge(state, penalty=penalty, standardize=bool(standardize))
    state.check_classes()
    held_out = state.holdout.indices
    rows = Rows.joined([rows.take(~torch.isin(rows.indices, held_out)) for rows in map(goal.of, stored)])
    rows = rows.take(rows.indices.argsort())  # the same numbers for any order of batches and ranks
    return solve_logistic(
        rows.features,
        rows.targets,
        num_classes=goal.num_classes,
        penalty=1.0 if penalty is None else penalty,
        weights=rows.weights,
        folds=torch.from_numpy(state.fold_of(rows.indices)),
        standardize=standardize is None or standardize,
    )


def _check_options(targets: str, solver: str, max_skipped: float) -> None:
    for name, value, known in (("targets", targets, ("labels", "logits")), ("solver", solver, ("ridge", "logistic"))):
        if value not in known:
            raise CamhookError(f"Found {name}={value!r}, expected one of {', '.join(known)}.")
    if solver == "logistic" and targets == "logits":
        raise CamhookError("Found solver='logistic' for targets='logits': scores are no classes. Take 'ridge'.")
    if not 0 <= max_skipped <= 1:
        raise CamhookError(f"Found max_skipped={max_skipped}, expected a share from 0 to 1.")
    if solver == "logistic" and find_spec("sklearn") is None:
        raise DependencyError(
            'solver="logistic" needs scikit-learn, which is not installed: pip install "camhook[fit]". Or take "ridge".'
        )

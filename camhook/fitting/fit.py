"""Fit a probe: one pass over images through the frozen model, a solve, a measure, a report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from camhook.adapters.timm import model_name
from camhook.distributed import Ranks
from camhook.engine.features import backbone_fingerprint
from camhook.errors import CamhookError
from camhook.fitting.batches import batches, first_of
from camhook.fitting.data import as_source
from camhook.fitting.goals import goal_of
from camhook.fitting.items import Indexed, Stream
from camhook.fitting.learning import Frozen, learner, sizes_of
from camhook.fitting.outcome import outcome, preprocessing_of
from camhook.fitting.passes import go_through
from camhook.fitting.probe import Probe
from camhook.fitting.reports import FitReport
from camhook.fitting.solving import place_for_rows, solve
from camhook.fitting.statistics import Statistics
from camhook.fitting.tally import Tally

if TYPE_CHECKING:
    from camhook.engine.reader import ModelReader

__all__ = ["fit"]

_log = logging.getLogger(__name__)

Path = str | os.PathLike[str]


def fit(
    cam: ModelReader,
    data: Any,
    *,
    targets: Literal["labels", "logits"] = "labels",
    pool: Literal["gap", "attention"] = "gap",
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
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
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
    """Fit a linear probe on the pooled features of a frozen model, and make it the CAM's probe.

    One pass over the images. Nothing of the model changes. Under torch.distributed the ranks share the images, none
    twice, and all get the same probe as a single process would.

    Parameters
    ----------
    cam : CAM
        What `camhook.wrap` gives.
    data
        A folder with a folder of images for each class (any folder of images for ``targets="logits"``); a torch
        Dataset or DataLoader; a datasets.Dataset; a sequence or other iterable of images or of (image, label), one by
        one or in batches (images, labels); tensors (images, labels); or features that were pooled before, a
        `FeatureCache` or tensors (features (N, C), targets). Photos are preprocessed as the model wants it, tensors
        (C, H, W) are taken as they are. A label is a class's number, or 0 or 1 for each class.
    targets
        ``"labels"``: the data's classes. ``"logits"``: the model's own scores; no labels are needed, and where folders
        carry names of the model's classes the accuracy is measured too.
    pool
        ``"gap"``: the mean over positions; ``"attention"``: weighted by the class token's last attention.
    solver
        ``"ridge"``: least squares in closed form; memory does not grow with the data. ``"logistic"``: keeps the pooled
        features, 4 bytes each.
    penalty
        On the squared weights; of several the best by cross-validation. Default: a grid (ridge), 1 (logistic).
    standardize
        Penalise as if features had a standard deviation of 1. Default: for logistic.
    class_names, num_classes
        Of the labels, where the data do not say.
    class_weight
        ``"balanced"``, so that all classes weigh the same, or a weight a class (K,).
    sample_weight
        A weight an image (N,), by its number in the data.
    columns
        Names of image and label, where items are dictionaries.
    batch_size, num_workers
        Default the DataLoader's own, else 32 and 0.
    autocast
        Run the model in this precision, ``torch.bfloat16`` say.
    channels_last
        Give the model its images in that memory format; often faster on a GPU.
    folds, holdout, capacity, seed
        Parts of the cross-validation; the share of images kept aside to measure by, at most ``capacity`` of them; both
        by a hash of the image's number.
    checkpoint
        A file that is written as the fit goes, in one step each; the same call goes on from it.
    checkpoint_every
        Seconds between two of these.
    cache
        A folder for the pooled features of the logistic solver. Default: beside the checkpoint if there is one, else in
        memory, or in a temporary folder if they take more than 2 GiB.
    max_skipped
        Share of images that may be unreadable; these are skipped and listed.
    progress
        Show a progress bar.

    Returns
    -------
    FitReport

    Raises
    ------
    CamhookError
        The data cannot be fitted to; each says what was found, what was expected and what to do.
    ImageError
        More images cannot be read than may be.
    KeyboardInterrupt
        After Ctrl-C, once the checkpoint is written.

    Notes
    -----
    Ridge needs one pass, and (C + K) C doubles for each fold, whatever the number of images; the hold-out takes
    ``capacity`` rows of C doubles, and which images are done a bit each. Ranks have that each, and share the images.

    Measured by ``tests/benchmarks/fitting.py`` on one CPU core, for C = 2,048 (ResNet-50), K = 1,000 and 5 folds: sums
    take 0.33 ms an image beside some 400 ms for the model, so that the pass runs at 1.0 of plain feature extraction
    (0.97 for ResNet-18 and its logits); the sums are 240 MiB, a full hold-out 80, a checkpoint as much as both; the
    solve takes 4 s, or 33 s to choose among 21 penalties. So, besides the model's own time:

    - ImageNet-1k, 1,281,167 images: one pass, 0.3 GiB, 7 minutes of one core, and the solve.
    - A billion images: one pass, 0.3 GiB and 0.13 GB for what is done; 92 hours of one core (an hour and a half on 64
      ranks), and the same solve. Give these as a Dataset by number: a folder's list of files would not fit.

    Examples
    --------
    >>> import timm, camhook
    >>> cam = camhook.wrap(timm.create_model("test_resnet", num_classes=0))
    >>> images, labels = torch.randn(60, 3, 160, 160), torch.arange(60) % 2
    >>> report = fit(cam, (images + labels.view(-1, 1, 1, 1), labels), class_names=["dark", "bright"], progress=False)
    >>> report.num_classes, report.fidelity.top1
    (2, 1.0)
    >>> cam(images[:1], "bright").explains
    'probe'
    """
    _check(targets, solver, penalty, max_skipped, holdout)
    source, preprocessing = as_source(data, columns), cam.preprocessing
    if isinstance(source, Stream) and checkpoint is not None:
        raise CamhookError(
            "Found data that come as a stream, with checkpoint=: their images have no numbers, so a killed fit cannot "
            "go on. Pass a folder, a Dataset or a sequence, or leave the checkpoint out."
        )
    first, source = first_of(source, preprocessing)
    frozen = Frozen(cam, pool, autocast, channels_last)
    num_features, num_logits, replaced = sizes_of(frozen, source, first, targets)
    weighing = (class_weight, sample_weight)
    goal = goal_of(num_logits, cam.class_names, source, first, targets, class_names, num_classes, *weighing)
    fingerprint = backbone_fingerprint(cam.model)
    device = frozen.device if frozen.device.type == "cuda" else torch.device("cpu")
    ranks, size = Ranks.of_process_group(device), source.size

    def empty() -> Statistics:
        kinds: dict[str, Any] = {"targets": goal.kind, "folds": folds, "holdout": holdout, "capacity": capacity}
        return Statistics(num_features, goal.num_classes, **kinds, seed=seed, device=device)

    run = {
        "model": model_name(cam.model),
        "fingerprint": fingerprint,
        "layer": str(cam.encoder.point),
        "pool": pool,
        "data": source.identity if isinstance(source, Indexed) else {"features": size},
        "preprocessing": preprocessing_of(cam),
        "autocast": str(autocast),
        "solver": solver,
        "weights": goal.weighted,
        "statistics": empty().settings,
    }
    with ExitStack() as stack:
        tally = Tally(empty, size, ranks, checkpoint, run)
        rows = place_for_rows(stack, solver, ranks, size, num_features, goal, cache, checkpoint)
        if rows is not None:
            tally.flush = rows.flush
            if not tally.seen_before and ranks.rank == 0:
                rows.weights.zero_()  # what another run left there
            ranks.wait()
        learn = learner(frozen, tally, goal, rows, source)
        left = "a stream of" if size is None else f"{size - tally.seen_before:,}"
        place = f"{run['model']} at {run['layer']}, pooled by {pool}"
        _log.info("reading %s images through %s, on %d process(es)", left, place, ranks.world)
        mine = batches(
            source,
            tally.base_progress,
            preprocessing,
            batch_size=batch_size or getattr(source, "batch_size", None) or 32,
            num_workers=(getattr(source, "num_workers", None) or 0) if num_workers is None else num_workers,
            rank=ranks.rank,
            world=ranks.world,
            pin_memory=frozen.device.type == "cuda",
        )
        name = source.name if isinstance(source, Indexed) else "image {}".format
        go_through(mine, learn, tally, name, every=checkpoint_every, max_skipped=max_skipped, progress=progress)
        statistics, done = tally.total()
        _log.info("solving (%s): %d features, %d classes", solver, num_features, goal.num_classes)
        started = time.perf_counter()
        solution = solve(rows, statistics, goal, ranks, penalty, standardize, device)
        solve_seconds = time.perf_counter() - started
    report, probe = outcome(
        cam, pool, solver, goal, statistics, solution, done, fingerprint, replaced=replaced, solve_seconds=solve_seconds
    )
    _log.info("measured on %d images held out", report.fidelity.images)
    return report, probe


def _check(targets: str, solver: str, penalty: Any, max_skipped: float, holdout: float) -> None:
    for name, value, known in (("targets", targets, ("labels", "logits")), ("solver", solver, ("ridge", "logistic"))):
        if value not in known:
            raise CamhookError(f"Found {name}={value!r}, expected one of {', '.join(known)}.")
    if solver == "logistic" and targets == "logits":
        raise CamhookError("Found solver='logistic' for targets='logits': scores are no classes. Take 'ridge'.")
    if not 0 <= max_skipped <= 1:
        raise CamhookError(f"Found max_skipped={max_skipped}, expected a share from 0 to 1.")

"""From what a pass has counted to a head: by moments, or by rows that were kept."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from camhook.distributed import Ranks
from camhook.errors import CamhookError
from camhook.fitting.caches import FeatureCache
from camhook.fitting.goals import Goal
from camhook.fitting.rows import sample_hash
from camhook.fitting.solvers import Solution, solve_logistic, solve_ridge
from camhook.fitting.statistics import Statistics

__all__ = ["place_for_rows", "solve"]

_log = logging.getLogger(__name__)
_IN_MEMORY = 2 * 2**30  # bytes of pooled features; more of them go to a file


def place_for_rows(
    stack: ExitStack,
    solver: str,
    ranks: Ranks,
    size: int | None,
    num_features: int,
    goal: Goal,
    cache: str | os.PathLike[str] | None,
    checkpoint: str | os.PathLike[str] | None,
) -> FeatureCache | None:
    """Make the place for pooled features, where the solver needs them."""
    if solver == "ridge":
        return None
    if size is None:
        raise CamhookError("Found a stream for solver='logistic', which keeps a row an image; pass data with a length.")
    folder = cache
    if folder is None and checkpoint is not None:
        folder = f"{os.fspath(checkpoint)}.rows"
    elif folder is None and 4 * size * num_features > _IN_MEMORY and ranks.world == 1:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="camhook-"))
        _log.info("keeping %.3g GB of pooled features in %s", 4 * size * num_features / 1e9, folder)
    several = goal.num_classes if goal.kind == "multilabel" else None
    if ranks.rank == 0:
        found = FeatureCache(size, num_features, num_targets=several, folder=folder)
    ranks.wait()  # the first rank makes the files
    if ranks.rank > 0:
        found = FeatureCache(size, num_features, num_targets=several, folder=folder)
    return found


def solve(
    rows: FeatureCache | None,
    statistics: Statistics,
    goal: Goal,
    ranks: Ranks,
    penalty: float | Sequence[float] | None,
    standardize: bool | None,
    device: torch.device,
) -> Solution:
    """Return the head: by ridge regression from the moments if no rows were kept, else by logistic regression."""
    if rows is None:
        return solve_ridge(statistics, penalty=penalty, standardize=bool(standardize))
    statistics.check_classes()
    rows.share(ranks)
    weights = rows.weights.clone()
    weights[statistics.holdout.indices] = 0  # these are to measure by
    expected = int(statistics.total().count)
    if not goal.weighted and int((weights > 0).sum()) != expected:
        raise CamhookError(
            f"Found the features of {int((weights > 0).sum())} images where {expected} were read: the cache is of "
            "another run, or not every rank can see its folder. Choose another folder."
        )
    hashes = sample_hash(torch.arange(len(weights)).numpy(), statistics.settings["seed"])
    return solve_logistic(
        rows.features,
        rows.targets,
        num_classes=goal.num_classes,
        mode="multinomial" if goal.kind == "labels" else "one-vs-rest",
        penalty=1.0 if penalty is None else penalty,
        weights=weights,
        folds=torch.from_numpy((hashes % statistics.settings["folds"]).astype("int64")),
        standardize=standardize is None or standardize,
        device=device,
    )

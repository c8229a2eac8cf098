"""A wrapped model and a probe on its frozen features."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from camhook.accounting import Accounting
from camhook.errors import CamhookError
from camhook.explaining import Accounted, check_method
from camhook.fitting.probe import Probe
from camhook.fitting.reports import FitReport
from camhook.plan import Plan
from camhook.probing import check_probe, probe_names
from camhook.targets import ClassNames
from camhook.wrapped import WrappedModel

__all__ = ["ProbedModel"]


class ProbedModel(WrappedModel):
    """A wrapped model that may have a probe, whose scores are then explained beside its own."""

    _method = "auto"
    _probe: Probe | None = None

    @property
    def probe(self) -> Probe | None:
        """The probe on the model's frozen features, if there is one.

        Setting one raises `ProbeMismatchError` if it was fitted on another model, layer, layout or width.
        """
        return self._probe

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        if probe is not None:
            check_probe(probe, self.model, self.encoder)
        self._probe = probe

    @property
    def class_names(self) -> ClassNames:
        """The names of the classes that are explained by default: the probe's, if it was fitted on labels."""
        uses_probe = self._uses_probe(next(iter(self._plans.values()), None), self._method)
        return probe_names(self._probe, self.model_class_names) if uses_probe else self.model_class_names

    def _uses_probe(self, plan: Plan | None, method: str) -> bool:
        check_method(method)
        if method == "probe" and self._probe is None:
            raise CamhookError("There is no probe: fit one, cam.fit(data), or pass probe= to wrap.")
        if method != "auto" or self._probe is None:
            return method == "probe"
        return self._probe.info.targets != "logits" or (plan is not None and plan.head is None)

    def _account_for_probe(self, tensor: Tensor) -> Accounted:
        probe = self._probe
        assert probe is not None
        source, _ = self.pooled(tensor, probe.info.pooling)
        account = Accounting(probe.scores, [source], widens=True, dtype=source.positions.dtype)
        names, head = probe_names(probe, self.model_class_names), f"{probe.info.pooling}/linear"
        return Accounted(probe.scores(source.full), account, names, "probe", head, str(self.encoder.point))

    def fit(self, data: Any, *, targets: Any = "labels", pool: Any = "gap", **options: Any) -> FitReport:
        """Fit a probe on the model's frozen features, and take it as this CAM's probe; see `camhook.fitting.fit.fit`.

        Parameters
        ----------
        data
            A folder with a folder of images a class, a Dataset or DataLoader, pairs (images, labels), features.
        targets
            ``"labels"``: the data's classes; ``"logits"``: the model's own scores, for which no labels are needed.
        pool
            ``"gap"``, or ``"attention"``: weighted by the class token's last attention.
        **options
            The solver, weights, checkpoints and the rest.

        Returns
        -------
        FitReport
            How far the probe may be believed, measured on images held out.
        """
        from camhook.fitting.fit import fit

        return fit(self, data, targets=targets, pool=pool, **options)

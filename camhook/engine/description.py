"""Description of how a model's map is read, in words and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from camhook.engine.plan import Plan

__all__ = ["Description"]


_TAILS = {
    "none": "no classifier",
    "linear": "affine as it stands: the map is Zhou's CAM",
    "norm-linear": "affine once norm scales and attention weights are frozen",
    "mlp": "affine, one layer of activations, affine: path integral in closed form",
    "deep": "several layers of activations: each replaced by its secant between baseline and value",
}


@dataclass(frozen=True)
class Description:
    """How a model's map is read; prints as a table.

    Attributes
    ----------
    explains
        ``"model"``, or ``"none"`` for an encoder without a classifier, whose maps need a probe.
    target_layer
        Where the map is read.
    pooling, tail
        How positions become one vector, and what follows; see `Head`.
    check_error
        Largest relative deviation in the checks on random parameters; None where the tail is as deep as the model, and
        the check is that of every call, on the model's own logits.
    forward_passes
        Passes through the backbone that one call costs.
    """

    model: str
    explains: str
    target_layer: str
    layout: str
    feature_shape: tuple[int, ...]
    grid_size: tuple[int, int]
    num_prefix_tokens: int
    input_size: tuple[int, int]
    num_classes: int
    adapter: str
    pooling: str
    tail: str
    check_error: float | None
    forward_passes: int

    @classmethod
    def of(cls, name: str, plan: Plan) -> Description:
        """Describe the model of that name by its plan."""
        head = plan.head
        return cls(
            model=name,
            explains="model" if head else "none",
            target_layer=plan.target_layer,
            layout=plan.features[0].layout.axes if plan.features else "NLC",
            feature_shape=plan.features[0].shape[1:] if plan.tokens is None else plan.tokens.shape,
            grid_size=plan.grid_size,
            num_prefix_tokens=plan.num_prefix_tokens,
            input_size=plan.input_size,
            num_classes=plan.num_classes,
            adapter=plan.adapter,
            pooling=head.pooling if head else "none",
            tail=head.tail if head else "none",
            check_error=head.error if head and plan.tokens is None else None,
            forward_passes=plan.forward_passes,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain types, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        checks = (
            "no head to check"
            if self.explains == "none"
            else "on every call, against the model's own logits"
            if self.check_error is None
            else f"passed on random parameters, largest relative deviation {self.check_error:.0e}"
        )
        rows = {
            "model": f"{self.model}, {self.num_classes} classes, input {self.input_size[0]} x {self.input_size[1]}",
            "target layer": self.target_layer,
            "features": f"{self.feature_shape} as {self.layout}, grid {self.grid_size[0]} x {self.grid_size[1]}, "
            f"{self.num_prefix_tokens} prefix tokens",
            "pooling": f"{self.pooling} (adapter {self.adapter!r})",
            "tail": f"{self.tail}: {_TAILS[self.tail]}",
            "checks": checks,
            "cost": f"{self.forward_passes} forward pass{'es' * (self.forward_passes > 1)} and a run of the tail",
        }
        return "\n".join(f"{name:<13} {value}" for name, value in rows.items())

"""Command ``check``: completeness of one model's maps, agreement with Captum, and the time of a call."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from camhook.adapters import libraries
from camhook.adapters.base import Layout
from camhook.cam import CAM
from camhook.cli.loading import create, load_model
from camhook.cli.options import model_options
from camhook.engine.description import Description
from camhook.engine.inputs import in_chans_of
from camhook.images.preprocessing import Preprocessing
from camhook.results.result import CAMResult
from camhook.wrapping import wrap

__all__ = ["Check", "check", "jitter", "measure"]

_EQUAL = 1e-3  # Captum's map and ours, relative to the largest value, where both compute the same in float32
_STEPS = 32
_PAIRS = 7


@click.command()
@click.argument("model")
@model_options
@click.option("--pretrained", is_flag=True, help="Fetch timm's pretrained weights.")
@click.option("--photo", type=click.Path(path_type=Path), help="A photo to check on, instead of random noise.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    model: str, checkpoint: str | None, num_classes: int | None, pretrained: bool, photo: Path | None, as_json: bool
) -> None:
    """Check MODEL in real numbers: whether its maps add up and agree with Captum, and what they cost.

    Without --checkpoint or --pretrained the weights are random, and jittered, so that none is zero. The exit status is
    1 if a map does not add up, or if Captum disagrees where it computes the same.
    """
    trained = pretrained or checkpoint is not None or model == "demo"
    made = load_model(model, checkpoint, num_classes) if trained else create(model, num_classes=num_classes)
    found = measure(made, photo, untrained=not trained)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
    if not found.passed:
        raise click.ClickException(f"{model} failed the check.")


@dataclass(frozen=True)
class Check:
    """What was measured on one image.

    Attributes
    ----------
    completeness_error, tolerance
        The largest difference between mean of map plus offset and the logit, and the largest allowed, both relative to
        the largest logit.
    offset_share
        The share of the top class's logit that belongs to no position.
    captum
        The Captum method that the top class's map was compared with, and whether it computes the same.
    is_same
        Captum computes the same, so that its map has to be equal up to a factor.
    correlation, deviation
        Correlation of Captum's map with ours, and their largest difference relative to the largest value; None where
        nothing was compared, or, for the correlation, where the map is flat.
    wrap_seconds, forward_ms, call_ms
        Time of wrapping, and medians of plain forward passes and of calls, measured in turns.
    """

    model: str
    weights: str
    input: str
    head: str
    target_layer: str
    forward_passes: int
    classes: int
    completeness_error: float
    tolerance: float
    offset_share: float
    captum: str
    is_same: bool
    correlation: float | None
    deviation: float | None
    wrap_seconds: float
    forward_ms: float
    call_ms: float

    @property
    def passed(self) -> bool:
        """Whether every map adds up, and equals Captum's where that computes the same."""
        complete = self.completeness_error <= self.tolerance
        return complete and not (self.is_same and (self.deviation is None or not self.deviation < _EQUAL))

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain types, ready for JSON; what is not a number is None."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return plain | {"passed": self.passed}

    def __str__(self) -> str:
        verdict = "adds up" if self.completeness_error <= self.tolerance else "DOES NOT ADD UP"
        captum = self.captum
        if self.deviation is not None:
            like = "the map is flat" if self.correlation is None else f"correlation {self.correlation:.4f}"
            captum += f": {like}, largest deviation {self.deviation:.1e}"
        rows = {
            "model": f"{self.model}, {self.weights}, on {self.input}",
            "map": f"{self.head} at {self.target_layer}",
            "completeness": f"{verdict}: misses the logit by {self.completeness_error:.1e} of the largest, "
            f"{self.tolerance:.0e} allowed, {self.classes} classes",
            "offset": f"{self.offset_share:.0%} of the top class's score belongs to no position",
            "Captum": captum,
            "time": f"wrap {self.wrap_seconds:.2f} s, forward {self.forward_ms:.1f} ms, call {self.call_ms:.1f} ms "
            f"({self.call_ms / self.forward_ms:.2f} forwards)",
        }
        return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def jitter(model: nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter, in place: heads that are initialised to zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            fresh = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.05
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=0.1 * spread if spread > 1e-4 else fresh)


def measure(model: nn.Module, photo: str | os.PathLike[str] | None = None, *, untrained: bool = False) -> Check:
    """Explain one image with a timm model; measure completeness, agreement with Captum, and time.

    Parameters
    ----------
    model
        The classifier, on the CPU; set to eval mode.
    photo
        Path of the photo to explain; default random noise.
    untrained
        The weights are random: `jitter` them first, in place.

    Raises
    ------
    UnsupportedModelError
        If the model has no head.
    """
    if untrained:
        jitter(model)
    model.eval()
    started = time.perf_counter()
    cam = wrap(model)
    wrap_seconds = time.perf_counter() - started
    inputs = _inputs(model, cam, photo)
    result = cam(inputs, topk=min(5, cam.describe().num_classes))
    found = cam.describe()
    largest = float(result.logits.abs().max())
    theirs, captum, is_same = _captum(model, found, inputs, int(result.target[0, 0]))
    correlation, deviation = (None, None) if theirs is None else _compared(theirs, result)
    forward_ms, call_ms = _times(lambda: model(inputs), lambda: cam(inputs))
    return Check(
        model=result.model_name,
        weights="random weights, jittered" if untrained else "weights as given",
        input=os.fspath(photo) if photo is not None else "random noise",
        head=result.head,
        target_layer=result.target_layer,
        forward_passes=found.forward_passes,
        classes=result.target.shape[1],
        completeness_error=float(result.completeness_error.max()) / largest,
        tolerance=float(result.tolerance.max()) / largest,
        offset_share=float(result.offset_share[0, 0]),
        captum=captum,
        is_same=is_same,
        correlation=correlation,
        deviation=deviation,
        wrap_seconds=wrap_seconds,
        forward_ms=forward_ms,
        call_ms=call_ms,
    )


def _inputs(model: nn.Module, cam: CAM, photo: str | os.PathLike[str] | None) -> Tensor:
    config = libraries.data_config(model) or {}
    size = cam.describe().input_size
    channels = in_chans_of(model, size)
    if photo is not None:
        return Preprocessing(config | {"input_size": (channels, *size)}, channels)([photo]).tensor
    return torch.randn((1, channels, *size), generator=torch.Generator().manual_seed(0))


def _captum(model: nn.Module, found: Description, inputs: Tensor, target: int) -> tuple[Tensor | None, str, bool]:
    """Return the map (h, w) of the closest Captum method, its name, and whether it computes the same as ours."""
    from captum.attr import IntegratedGradients, LayerGradCam, LayerGradientXActivation

    name = found.target_layer.removeprefix("input of ")
    is_input = name != found.target_layer
    modules = dict(model.named_modules())
    if name not in modules:
        return None, "reads one layer, and this map is read from several: not compared", False
    layer, layout = modules[name], Layout(found.layout, found.num_prefix_tokens)  # type: ignore[arg-type]

    def as_map(attribution: Tensor) -> Tensor:
        return layout.split(attribution, found.grid_size)[0].sum(1)[0].detach()

    if found.tail == "mlp" and not is_input:
        # Captum integrates along the same path, and its norms change along it, where ours are frozen.
        with torch.no_grad():
            kept: list[Tensor] = []
            handle = layer.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
            model(inputs)
            handle.remove()

        def tail(features: Tensor) -> Any:
            handle = layer.register_forward_hook(lambda module, args, output: features)
            try:
                return model(inputs.expand(len(features), *inputs.shape[1:]))
            finally:
                handle.remove()

        positions, prefix = layout.split(kept[0], found.grid_size)
        baseline = layout.join(torch.zeros_like(positions), prefix)
        integrated = IntegratedGradients(tail).attribute(
            kept[0], baseline, target=target, n_steps=_STEPS, internal_batch_size=4
        )
        return as_map(integrated), f"IntegratedGradients from there on, {_STEPS} steps (norms move)", False
    is_same = found.tail == "linear"
    kind = "computes the same" if is_same else "another definition"
    if found.layout == "NCHW" and found.pooling == "mean":
        attribution = LayerGradCam(model, layer).attribute(inputs, target, attribute_to_layer_input=is_input)
        return attribution[0, 0].detach(), f"LayerGradCam ({kind})", is_same
    method = LayerGradientXActivation(model, layer)
    attribution = method.attribute(inputs, target, attribute_to_layer_input=is_input)
    return as_map(attribution), f"LayerGradientXActivation, summed over channels ({kind})", is_same


def _compared(theirs: Tensor, result: CAMResult) -> tuple[float | None, float]:
    ours = result.maps[0, 0].double()
    theirs = theirs.double() * ours.numel()  # theirs add up to the logit, the mean of ours does
    largest = float(ours.abs().max())
    correlation = float(torch.corrcoef(torch.stack((ours.flatten(), theirs.flatten())))[0, 1])
    is_flat = float(ours.std()) < _EQUAL * largest
    return None if is_flat else correlation, float((ours - theirs).abs().max()) / largest


def _times(forward: Callable[[], Any], call: Callable[[], Any]) -> tuple[float, float]:
    """Return median times in milliseconds of runs in turns, after one warm-up run of each."""
    times: dict[Callable[[], Any], list[float]] = {forward: [], call: []}
    for _ in range(_PAIRS + 1):
        for run, measured in times.items():
            started = time.perf_counter()
            with torch.no_grad():
                run()
            measured.append(1000 * (time.perf_counter() - started))
    first, second = (statistics.median(measured[1:]) for measured in times.values())
    return first, second

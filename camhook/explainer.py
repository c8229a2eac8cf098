"""`wrap` a model, call the result with pictures, get maps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from camhook.accounting import Accounting
from camhook.adapters.base import Adapter
from camhook.capture import Capture, Pass, watching
from camhook.description import Description
from camhook.errors import CamhookError, CompletenessError, ImageError, TargetError, UnsupportedModelError
from camhook.hooks import evaluating
from camhook.images import Geometry, ImageBatch, Preprocessing, Source
from camhook.inputs import check_tensor, in_chans_of, original, own_config, resolve_input_size, selector, size_of
from camhook.maps import completeness_error, contrasted, rivals, tolerance
from camhook.montage import Term, anatomy
from camhook.observing import observing
from camhook.plan import Plan, make_plan, model_name
from camhook.results import CAMResult
from camhook.skeletons import Twin
from camhook.sources import MeanSource
from camhook.tails import Output
from camhook.targets import ClassNames, resolve_targets

__all__ = ["CAM", "Description", "wrap"]

METHODS = ("auto", "cam")


def wrap(
    model: nn.Module,
    *,
    method: str = "auto",
    adapter: Adapter | None = None,
    target_layer: str | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    data_config: Mapping[str, Any] | None = None,
    input_size: tuple[int, int] | None = None,
    output: Output | str | int | None = None,
    strict: bool = False,
) -> CAM:
    """Wrap a trained classifier, so that calling the result tells where in a picture its scores come from.

    The model is neither run nor changed. Where and how the map is read is found on a copy without values.

    Parameters
    ----------
    model
        Any timm classifier whose head pools spatial features, or another module alike.
    method
        ``"cam"``: the model's own head; ``"auto"`` the same where it has one.
    adapter, target_layer
        How features become positions, and the module that gives them, where camhook should not find out by itself.
    class_names
        Names in order or by index; default timm's for the model.
    data_config
        timm's preprocessing dictionary; default the model's own.
    input_size
        (height, width) of the model's input; default read off the model, else off the first call.
    output
        How to get the logits from what the model returns: an index, a key or attribute name, or a function.
    strict
        Raise `CompletenessError` for a map that misses the model's score by more than rounding.

    Raises
    ------
    UnsupportedModelError
        If the model has no head, or none that pools spatial features in a way that is covered.

    Examples
    --------
    >>> import timm
    >>> cam = wrap(timm.create_model("test_convnext"))
    >>> result = cam(torch.zeros(1, 3, 160, 160))
    >>> result.maps.shape, bool(result.exact)
    (torch.Size([1, 1, 5, 5]), True)
    """
    _check_method(method)
    cam = CAM(model, adapter, target_layer, class_names, data_config, input_size, output, strict)
    if cam._input_size is not None:
        cam._plan_for(cam._input_size)
    return cam


class CAM:
    """A wrapped model; made by `wrap`. Calling it explains pictures."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        target_layer: str | None,
        class_names: Sequence[str] | Mapping[int, str] | None,
        data_config: Mapping[str, Any] | None,
        input_size: tuple[int, int] | None,
        output: Output | str | int | None,
        strict: bool,
    ) -> None:
        self.model, self._found_in = original(model)
        model = self.model
        self.strict = strict
        self.class_names = ClassNames.of_model(model) if class_names is None else ClassNames(class_names)
        self._adapter, self._target_layer = adapter, target_layer
        self._output = selector(output)
        config = dict(data_config) if data_config is not None else own_config(model)
        self._input_size = resolve_input_size(model, config if data_config else None, input_size, config)
        self._in_chans = in_chans_of(model, self._input_size)
        self._preprocessing: Preprocessing | None = None
        if config is not None and self._input_size is not None:
            config["input_size"] = (self._in_chans, *self._input_size)
            self._preprocessing = Preprocessing(config, self._in_chans)
        self._twin = Twin(model)
        self._plans: dict[tuple[int, int], Plan] = {}

    @torch.inference_mode(False)
    def __call__(
        self,
        images: Source | Sequence[Source] | Tensor,
        target: Any = None,
        *,
        topk: int | None = None,
        contrast: str | Sequence[int | str] | None = None,
        method: str = "auto",
    ) -> CAMResult:
        """Explain pictures in one forward pass, which runs in eval mode and leaves everything as it was.

        Parameters
        ----------
        images
            A path, PIL image or uint8 array (H, W, 3), a list of these, or a preprocessed tensor (B, C, H, W).
        target
            A class, by index or name; a list or 1-d tensor of one an image; a list of lists or (B, T) tensor of
            several; ``"all"``. Default the predicted class.
        topk
            Instead of a target: the so many classes with the highest scores.
        contrast
            Explain why this class and not those: subtract the mean over these classes, or over the ``"rivals"``, the
            ten others with the highest scores.
        method
            ``"auto"`` or ``"cam"``.

        Raises
        ------
        ImageError, TargetError, HookError, CompletenessError
            Each says what was found, what was expected and what to do.
        """
        _check_method(method)
        tensor, batch = self._inputs(images)
        with self._accounted(tensor) as (plan, logits, account):
            return self._result(plan, logits, account, tensor, batch, target, topk, contrast)

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Watch the caller's own forward pass, in serving, validation or training, and explain it afterwards.

        The pass is not changed by a bit, and no second one is run.

        Yields
        ------
        Capture
            Its ``result(target=None)`` gives the maps once the model has run in the block; it takes what the call
            ``cam(images, target)`` takes. Ask for it before the weights change.

        Raises
        ------
        UnsupportedModelError
            If hooks cannot see the pass (a compiled or parallel model), or the map needs more than the pass gives.
        HookError
            On leaving the block, if the model did not run in it, or ran twice.

        Examples
        --------
        >>> import timm
        >>> model = timm.create_model("test_vit").eval()
        >>> cam = wrap(model)
        >>> with cam.capture() as captured:
        ...     logits = model(torch.zeros(2, 3, 160, 160))
        >>> captured.result().maps.shape
        torch.Size([2, 1, 10, 10])
        """
        if self._found_in:
            raise UnsupportedModelError(
                f"capture() cannot watch a model inside {self._found_in}: hooks set on it now do not fire there. Call "
                "cam(images), which runs the module itself, or wrap and run the module itself."
            )
        plan = self._plan_for(next(iter(self._plans), None) or self._known_size())
        self._check_head(plan)
        if plan.passes == 2:
            raise UnsupportedModelError(
                f"capture() gives maps from one pass; something comes round {plan.target_layer}, so that this map "
                "costs a second. Call cam(images)."
            )
        with watching(self.model, plan, self._finish) as captured:
            yield captured

    @torch.inference_mode(False)
    def _finish(self, plan: Plan, passed: Pass, target: Any, topk: int | None, contrast: Any) -> CAMResult:
        """Explain a forward pass that the caller ran."""
        tensor = passed.inputs
        logits = self._logits(passed.output).detach()
        with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
            account = passed.observation.account(plan, self._twin.module(), tensor, self._logits)
            return self._result(plan, logits, account, tensor, None, target, topk, contrast)

    def _result(
        self,
        plan: Plan,
        logits: Tensor,
        account: Accounting,
        tensor: Tensor,
        batch: ImageBatch | None,
        target: Any,
        topk: int | None,
        contrast: str | Sequence[int | str] | None,
    ) -> CAMResult:
        targets = resolve_targets(target, topk, logits, self.class_names)
        wide = logits.to(account.logits.dtype)

        def explained(classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return account.maps(classes), account.offset(classes), wide.gather(1, classes)

        maps, offset, scores = explained(targets)
        if contrast is not None:
            others = self._others(contrast, wide, targets)
            against = [x.reshape(*others.shape, *x.shape[2:]) for x in explained(others.flatten(1))]
            maps, offset, scores = map(contrasted, (maps, offset, scores), against)
        photos: Sequence[Image.Image] | None = batch.photos if batch else None
        if batch is None and self._preprocessing is not None:
            photos = _Later(self._preprocessing, tensor)
        result = CAMResult(
            maps=maps,
            offset=offset,
            target=targets,
            logits=wide,
            scores=scores,
            completeness_error=completeness_error(maps, offset, scores),
            tolerance=tolerance(wide, logits.dtype, account.dtype)[:, None],
            method="cam",
            head=str(plan.head),
            target_layer=plan.target_layer,
            model_name=model_name(self.model),
            names=tuple(batch.names if batch else [f"image{i}" for i in range(len(tensor))]),
            class_names=self.class_names,
            geometries=tuple(batch.geometries if batch else [Geometry.identity(size_of(tensor))] * len(tensor)),
            photos=photos,
            contrast="" if contrast is None else " against rivals" if contrast == "rivals" else " against others",
        )
        if self.strict and not bool(result.exact.all()):
            raise CompletenessError(
                f"A map misses the model's own score by {float(result.completeness_error.max()):.3g} logits, where "
                f"{float(result.tolerance.min()):.3g} was allowed. Was the head changed after wrapping, or does the "
                "model's forward do more than its head? Wrap it again; without strict=True the map is returned with "
                "exact=False."
            )
        return result

    def describe(self) -> Description:
        """Say where and how this model's map is read.

        Raises
        ------
        CamhookError
            If that is not known yet, since the input size is not: pass ``input_size=`` to wrap, or explain an image.
        """
        plan = self._plan_for(next(iter(self._plans), None) or self._known_size())
        return Description.of(model_name(self.model), plan)

    @torch.inference_mode(False)
    def anatomy(self, photo: Source | Tensor, target: int | str | None = None, *, channels: int = 5) -> Image.Image:
        """Draw CAM's own equation: the feature maps that add most to a class, each with its weight, and the rest.

        Parameters
        ----------
        photo
            One photo, or a tensor (1, C, H, W).
        target
            The class, by index or name; default the predicted one.
        channels
            How many feature maps to show one by one.

        Returns
        -------
        PIL.Image.Image
            photo = channel + ... + the other channels + offset = map, in logits.
        """
        result = self(photo, target)
        if len(result) != 1:
            raise ImageError(f"anatomy draws one image; {len(result)} were given.")
        with self._accounted(self._inputs(photo)[0]) as (_, _, account):
            (source,) = account.sources if len(account.sources) == 1 else (None,)
            if not isinstance(source, MeanSource):
                raise UnsupportedModelError(
                    f"anatomy draws feature maps pooled by their mean; {result.head} reads them otherwise."
                )
            weights = account.slopes(result.target)[0][0, 0]
            parts = weights[:, None, None] * source.positions[0]
        count = parts.shape[0]
        if not 1 <= channels <= count:
            raise CamhookError(f"channels={channels}: from 1 to {count}, the number of feature maps, was expected.")
        adds = parts.mean((1, 2))
        best = adds.topk(channels).indices
        rest = parts.sum(0) - parts[best].sum(0)
        shown: list[tuple[str, float | None, Tensor]]
        shown = [(f"channel {c}", float(weights[c]), parts[c]) for c in best.tolist()]
        shown += [(f"the other {count - channels} channels", None, rest)] if count > channels else []
        geometry = result.geometries[0]

        def term(label: str, weight: float | None, values: Tensor, score: float) -> Term:
            return Term(label, weight, geometry.to_photo(values).float().cpu().numpy(), score)

        return anatomy(
            result.photo(),
            [term(label, weight, values, float(values.mean())) for label, weight, values in shown],
            term(result.label(), None, result.maps[0, 0], float(result.scores[0, 0])),
            offset=float(result.offset[0, 0]),
            title=f"{result.label()}: {model_name(self.model)}'s score, taken apart",
        )

    @contextmanager
    def _accounted(self, tensor: Tensor) -> Iterator[tuple[Plan, Tensor, Accounting]]:
        """Run the model once, in eval mode, and within the block account for its logits."""
        plan = self._plan_for(size_of(tensor))
        self._check_head(plan)
        with torch.no_grad():
            with evaluating(self.model), observing(self.model, plan) as observation:
                logits = self._logits(self.model(tensor)).detach()
            with torch.autocast(tensor.device.type, enabled=False):
                yield plan, logits, observation.account(plan, self._twin.module(), tensor, self._logits)

    def _check_head(self, plan: Plan) -> None:
        if plan.head is None:
            raise UnsupportedModelError(
                f"{model_name(self.model)} has no head (num_classes=0, an Identity in the classifier's place, or an "
                "encoder), so there is no class score to explain. Its maps need a probe, a linear classifier on its "
                "frozen features; or give it a classifier (model.reset_classifier(...) and trained weights)."
            )

    def _known_size(self) -> tuple[int, int]:
        if self._input_size is None:
            raise CamhookError("The input size is not known yet. Pass input_size=(H, W) to wrap, or explain an image.")
        return self._input_size

    @torch.inference_mode(False)
    def _plan_for(self, size: tuple[int, int]) -> Plan:
        """Return the plan for inputs of that size: any plan will do, but class tokens count their patches."""
        if size not in self._plans:
            known = next(iter(self._plans.values()), None)
            self._plans[size] = (
                known
                if known and known.tokens is None
                else make_plan(
                    self.model,
                    (2, self._in_chans, *size),
                    adapter=self._adapter,
                    target_layer=self._target_layer,
                    output=self._output,
                )
            )
        return self._plans[size]

    def _logits(self, returned: Any) -> Tensor:
        logits = self._output(returned)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModelError(
                f"The model returned {found} where logits (B, K) were expected. Pass output= to wrap: an index, a key, "
                "an attribute name or a function that picks them."
            )
        return logits

    def _inputs(self, images: Any) -> tuple[Tensor, ImageBatch | None]:
        reference = next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))
        if isinstance(images, Tensor):
            images = images.detach()
            check_tensor(images, self._in_chans, reference)
            return images, None
        if self._preprocessing is None:
            raise ImageError(
                "How to preprocess photos is not known for this model. Pass data_config= (and input_size=) to wrap, as "
                "timm.data.resolve_model_data_config gives it, or pass a preprocessed (B, C, H, W) tensor."
            )
        single = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Sequence)
        batch = self._preprocessing([images] if single else list(images))
        return batch.tensor.to(device=reference.device, dtype=reference.dtype), batch

    def _others(self, contrast: str | Sequence[int | str], logits: Tensor, targets: Tensor) -> Tensor:
        if logits.shape[1] < 2:
            raise TargetError("contrast= needs a model of at least two classes.")
        if isinstance(contrast, str) and contrast == "rivals":
            return rivals(logits, targets)
        listed = [contrast] if isinstance(contrast, str | int) else list(contrast)
        others = resolve_targets([listed] * len(logits), None, logits, self.class_names)
        return others[:, None].expand(-1, targets.shape[1], -1)


class _Later(Sequence[Image.Image]):
    """Pictures of a preprocessed tensor, made when they are first drawn on."""

    def __init__(self, preprocessing: Preprocessing, tensor: Tensor) -> None:
        self._preprocessing, self._tensor = preprocessing, tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Later(self._preprocessing, self._tensor[index])
        return self._preprocessing.photos_of(self._tensor[index][None])[0]


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise CamhookError(f"method={method!r}: one of {', '.join(METHODS)} was expected.")

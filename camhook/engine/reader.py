"""A model with what is known of how to run it and where to read it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from camhook.adapters.base import Adapter, adapters
from camhook.adapters.libraries import class_names_of, data_config_of
from camhook.adapters.timm import model_name, own_config
from camhook.decompose.tail_inputs import MeanSource, WeightedSource
from camhook.engine.capture import observing
from camhook.engine.copies import Twin
from camhook.engine.features import run_encoder
from camhook.engine.hooks import evaluating
from camhook.engine.outputs import check_tensor, in_chans_of, original, resolve_input_size, selector, size_of
from camhook.engine.plan import Features, Plan
from camhook.engine.search import make_plan
from camhook.engine.tail import Output
from camhook.errors import CamhookError, ImageError, UnsupportedModelError
from camhook.images.preprocessing import ImageBatch, Preprocessing
from camhook.plan_cache import PlanCache, Unknown, structure_of
from camhook.targets import ClassNames

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WrappedModel"]

PLANS = PlanCache()
"""The plans of this process."""


class WrappedModel:
    """A live model, a twin of it, its preprocessing, and its plans by input size.

    Attributes
    ----------
    model : nn.Module
        The live model; the module inside, if it came compiled or parallel.
    in_chans : int
        How many channels it takes.
    preprocessing : Preprocessing or None
        How photos become its input, if that is known.
    output : callable
        Picks the logits out of what it returns.
    model_class_names : ClassNames
        The names of the model's own classes.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        target_layer: str | None,
        class_names: Sequence[str] | Mapping[int, str] | None,
        data_config: Any,
        input_size: tuple[int, int] | None,
        output: Output | str | int | None,
    ) -> None:
        self.model, self._found_in = original(model)
        model = self.model
        self.model_class_names = ClassNames.of_model(model) if class_names is None else ClassNames(class_names)
        # Names that come with weights hold if there are as many classes: fine-tuned models get their transforms too.
        self._likely_names = {} if class_names is not None else class_names_of(data_config) or class_names_of(model)
        self._adapter, self._target_layer = adapter, target_layer
        self.output = selector(output)
        given = None if data_config is None else data_config_of(data_config)
        config = own_config(model) if given is None else given
        self._input_size = resolve_input_size(model, given, input_size, config)
        self.in_chans = in_chans_of(model, self._input_size)
        self.preprocessing: Preprocessing | None = None
        if config is not None and self._input_size is not None:
            config["input_size"] = (self.in_chans, *self._input_size)
            self.preprocessing = Preprocessing(config, self.in_chans)
        self._twin = Twin(model)
        self._plans: dict[tuple[int, int], Plan] = {}

    @property
    def encoder(self) -> Features:
        """The model's last features with positions, which a probe reads.

        Raises
        ------
        UnsupportedModelError
            If none were found.
        """
        features = self.plan_for(next(iter(self._plans), None) or self._known_size()).encoder
        if features is None:
            raise UnsupportedModelError(
                f"{model_name(self.model)}: no last features with positions were found for a probe. If you know the "
                "place, pass target_layer= or adapter=."
            )
        return features

    @torch.inference_mode(False)
    def pooled(
        self, images: Tensor, pooling: str = "gap", *, inference: bool = False
    ) -> tuple[MeanSource | WeightedSource, Any]:
        """Run the model once, frozen and in eval mode, and pool its last features as a probe does.

        Parameters
        ----------
        images
            Preprocessed, (B, C, H, W).
        pooling
            ``"gap"``: the mean over positions; ``"attention"``: weighted by the class token's last attention.
        inference
            Run the model in inference mode. What it keeps for itself at its first pass cannot be trained with then.

        Returns
        -------
        source
            Its ``full`` is the pooled features, (B, C).
        returned
            What the model returned.

        Raises
        ------
        UnsupportedModelError
            If there is no class token whose attention could pool.
        """
        plan = self.plan_for(size_of(images)).for_probe(self.encoder, pooling)
        with torch.no_grad():
            with torch.inference_mode(inference), evaluating(self.model), observing(self.model, plan) as observation:
                returned = run_encoder(self.model, images)
            with torch.autocast(images.device.type, enabled=False):
                return observation.pooled(plan, self._twin.module(), images), returned

    def like(self, model: nn.Module) -> Self:
        """Return the same for another model of this architecture, such as a copy with other weights."""
        given = (self._adapter, self._target_layer, None, None, self._input_size, self.output)
        other = type(self)(model, *given)
        other._plans.update(self._plans)  # they are a matter of architecture
        return other

    def _known_size(self) -> tuple[int, int]:
        if self._input_size is None:
            raise CamhookError("The input size is not known yet. Pass input_size=(H, W) to wrap, or explain an image.")
        return self._input_size

    @torch.inference_mode(False)
    def plan_for(self, size: tuple[int, int]) -> Plan:
        """Return the plan for inputs of that size: any plan will do, but class tokens count their patches."""
        if size not in self._plans:
            known = next(iter(self._plans.values()), None)
            self._plans[size] = (
                known if known and known.tokens is None and known.reading is None else self._plan_of_process(size)
            )
        if len(self._likely_names) == self._plans[size].num_classes > 0:
            self.model_class_names = ClassNames(self._likely_names)
        return self._plans[size]

    @property
    def reference(self) -> Tensor:
        """A tensor on the device and of the dtype of the model's input."""
        return next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))

    def _plan_of_process(self, size: tuple[int, int]) -> Plan:
        """Return the plan that a model built alike had, or search one."""

        def make() -> Plan:
            return make_plan(
                self.model,
                (2, self.in_chans, *size),
                adapter=self._adapter,
                target_layer=self._target_layer,
                output=self.output,
            )

        asked = self.output.output
        if self._adapter is not None or callable(asked):
            return make()  # a stranger's functions, which may hold anything
        try:
            structure = structure_of(self.model)
        except Unknown:
            return make()
        return PLANS.get((structure, size, self.in_chans, self._target_layer, asked, *adapters()), make)

    def logits_of(self, returned: Any) -> Tensor:
        """Return the logits (B, K) among what the model returned.

        Raises
        ------
        UnsupportedModelError
            If they are nothing of the kind.
        """
        logits = self.output(returned)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModelError(
                f"The model returned {found} where logits (B, K) were expected. Pass output= to wrap: an index, a key, "
                "an attribute name or a function that picks them."
            )
        return logits

    def inputs(self, images: Any) -> tuple[Tensor, ImageBatch | None]:
        """Return images as the model takes them and, if they were photos, what is known of these.

        Raises
        ------
        ImageError
            If they cannot be used as they are.
        """
        reference = self.reference
        if isinstance(images, Tensor):
            images = images.detach()
            check_tensor(images, self.in_chans, reference)
            return images, None
        if self.preprocessing is None:
            raise ImageError(
                "How to preprocess photos is not known for this model. Pass data_config= (and input_size=) to wrap, as "
                "timm.data.resolve_model_data_config gives it, or pass a preprocessed (B, C, H, W) tensor."
            )
        single = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Sequence)
        batch = self.preprocessing([images] if single else list(images))
        return batch.tensor.to(device=reference.device, dtype=reference.dtype), batch

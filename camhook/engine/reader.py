"""ModelReader: a live model, how it is run, and its plans by input size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from camhook.adapters import libraries, timm
from camhook.adapters.base import Adapter
from camhook.decompose.tail_inputs import MeanInput, WeightedMeanInput
from camhook.engine.capture import CapturedPass, ForwardCapture, capture_forward
from camhook.engine.copies import SharedCopy
from camhook.engine.explanation import Explanation
from camhook.engine.hooks import evaluating
from camhook.engine.inputs import check_tensor, in_chans_of, size_of, unwrapped
from camhook.engine.outputs import Selector
from camhook.engine.plan import Features, Plan
from camhook.engine.points import layer_names
from camhook.engine.search import make_plan
from camhook.engine.tail import Output
from camhook.errors import CamhookError, ImageError, UnsupportedModelError
from camhook.images.preprocessing import ImageBatch, Preprocessing
from camhook.targets import ClassNames

__all__ = ["ModelReader"]


class ModelReader:
    """A live model, a structural copy of it, its preprocessing, and its plans.

    Parameters
    ----------
    model
        The classifier; if it is compiled or parallel, the module inside is read.
    adapter, target_layer, class_names, data_config, input_size, output
        As in `camhook.wrap`.
    plans
        Plans by input size, as far as they are known: they depend on the architecture alone.

    Attributes
    ----------
    model : nn.Module
        The module that is read.
    found_in : str
        What it was found in: ``"torch.compile"``, ``"DataParallel"``; empty for a plain module.
    in_chans : int
        Number of input channels.
    preprocessing : Preprocessing or None
        How photos become its input, if that is known.
    output : Selector
        Picks the logits out of what it returns.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        adapter: Adapter | None = None,
        target_layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
        class_names: Sequence[str] | Mapping[int, str] | ClassNames | None = None,
        data_config: Any = None,
        input_size: tuple[int, int] | None = None,
        output: Output | str | int | None = None,
        plans: Mapping[tuple[int, int], Plan] | None = None,
    ) -> None:
        self.model, self.found_in = unwrapped(model)
        self.output = Selector(output)
        self.name = libraries.model_name(self.model)
        self._adapter, self._layers = adapter, layer_names(self.model, target_layer)
        if class_names is not None and not isinstance(class_names, ClassNames):
            class_names = ClassNames(class_names)
        self._given_names = class_names
        self._given_config = data_config
        self._names: dict[int, ClassNames] = {}
        self._plans = dict(plans or {})
        if input_size is not None:
            height, width = input_size
            self.input_size: tuple[int, int] | None = (int(height), int(width))
        else:
            self.input_size = libraries.input_size(self.model, data_config)
        self.in_chans = in_chans_of(self.model, self.input_size)
        self.preprocessing: Preprocessing | None = None
        config = libraries.data_config(self.model, data_config)
        if config is not None and self.input_size is not None:
            config["input_size"] = (self.in_chans, *self.input_size)
            self.preprocessing = Preprocessing(config, self.in_chans)
        self._copy = SharedCopy(self.model)

    @property
    def class_names(self) -> ClassNames:
        """The names of the model's own classes."""
        if self._given_names is not None:
            return self._given_names
        # Names that come with weights hold if there are as many classes: fine-tuned models get their transforms too.
        plan = next(iter(self._plans.values()), None)
        count = 0 if plan is None else plan.num_classes
        if count not in self._names:
            names = libraries.class_names(self.model, self._given_config, num_classes=count or None)
            self._names[count] = ClassNames(names)
        return self._names[count]

    @property
    def reference(self) -> Tensor:
        """A tensor on the device and of the dtype of the model's input."""
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                return parameter
        return torch.zeros(())

    @property
    def has_head(self) -> bool:
        """Whether the model has a head, as far as is known: before the first plan, it is taken to have one."""
        return all(plan.head is not None for plan in self._plans.values())

    @property
    def plan(self) -> Plan:
        """The plan for the first input size that was met, else for the size that the model was made for.

        Raises
        ------
        CamhookError
            If the input size is not known yet.
        """
        size = next(iter(self._plans), None) or self.input_size
        if size is None:
            raise CamhookError("The input size is not known yet. Pass input_size=(H, W) to wrap, or explain an image.")
        return self.plan_for(size)

    @torch.inference_mode(False)
    def plan_for(self, size: tuple[int, int]) -> Plan:
        """Return the plan for inputs of that (height, width); plans with class tokens depend on it."""
        if size not in self._plans:
            known = next(iter(self._plans.values()), None)
            if known is None or known.tokens is not None or known.reading is not None:
                known = make_plan(
                    self.model,
                    (2, self.in_chans, *size),
                    adapter=self._adapter,
                    layers=self._layers,
                    output=self.output,
                )
            self._plans[size] = known
        return self._plans[size]

    @property
    def encoder(self) -> Features:
        """The model's last features with positions, which a probe pools.

        Raises
        ------
        UnsupportedModelError
            If none were found.
        """
        features = self.plan.encoder
        if features is None:
            raise UnsupportedModelError(
                f"{self.name}: no last features with positions were found for a probe. If you know the place, pass "
                "target_layer= or adapter=."
            )
        return features

    def like(self, model: nn.Module) -> ModelReader:
        """Return a reader of another model of this architecture, such as a copy with other weights."""
        return ModelReader(
            model,
            adapter=self._adapter,
            target_layer=self._layers or None,
            class_names=self._given_names,
            data_config=self._given_config,
            input_size=self.input_size,
            output=self.output.output,
            plans=self._plans,
        )

    def copied(self) -> ModelReader:
        """Return a reader of a structural copy of the model, which shares its tensors and nothing else."""
        return self.like(self._copy.module())

    def logits_of(self, returned: Any) -> Tensor:
        """Return the logits (B, K) among what the model returned.

        Raises
        ------
        UnsupportedModelError
            If they are something else.
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
        """Return images as the model takes them, (B, C, H, W), and, if they were photos, these and their geometry.

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

    @torch.no_grad()
    def explain(self, images: Tensor, *, secant_dtype: torch.dtype | None = None) -> Explanation:
        """Run the model once, in eval mode, on images (B, C, H, W) and decompose its logits.

        Raises
        ------
        UnsupportedModelError
            If the model has no head.
        """
        plan = self.plan_for(size_of(images))
        self.check_head(plan)
        with evaluating(self.model), capture_forward(self.model, plan) as forward:
            logits = self.logits_of(self.model(images)).detach()
        return self._explanation(plan, forward, images, logits, secant_dtype)

    @torch.no_grad()
    def explain_pass(self, passed: CapturedPass) -> Explanation:
        """Decompose the logits of a forward pass that the caller ran."""
        logits = self.logits_of(passed.returned[0]).detach()
        return self._explanation(passed.plan, passed.forward, passed.images[0], logits, None)

    def _explanation(
        self, plan: Plan, forward: ForwardCapture, images: Tensor, logits: Tensor, secant_dtype: torch.dtype | None
    ) -> Explanation:
        with torch.autocast(images.device.type, enabled=False):
            decomposition = forward.decompose(
                plan, self._copy.module(), images, self.logits_of, secant_dtype=secant_dtype
            )
        return Explanation(logits, decomposition, self.class_names, "model", str(plan.head), plan.target_layer)

    def check_head(self, plan: Plan) -> None:
        """Raise `UnsupportedModelError` if the model has no head."""
        if plan.head is None:
            raise UnsupportedModelError(
                f"{self.name} has no head (num_classes=0, an Identity in the classifier's place, or an "
                "encoder), so there is no class score to explain. Its maps need a probe: fit one on labelled images, "
                "cam.fit(data, targets='labels'), or pass probe= to wrap; or give the model a classifier "
                "(model.reset_classifier(...) and trained weights)."
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def pooled(
        self, images: Tensor, pooling: str = "gap", *, inference: bool = False
    ) -> tuple[MeanInput | WeightedMeanInput, Any]:
        """Run the model once, frozen and in eval mode, and pool its last features as a probe does.

        Parameters
        ----------
        images
            Preprocessed, (B, C, H, W).
        pooling
            ``"gap"``: the mean over positions; ``"attention"``: weighted by the class token's last attention.
        inference
            Run the model in inference mode. What it caches at its first pass cannot be trained with then.

        Returns
        -------
        input
            Its ``value`` is the pooled features, (B, C).
        returned
            What the model returned.

        Raises
        ------
        UnsupportedModelError
            If there is no class token whose attention could pool.
        """
        plan = self.plan_for(size_of(images)).for_probe(self.encoder, pooling)
        with torch.inference_mode(inference), evaluating(self.model), capture_forward(self.model, plan) as forward:
            returned = timm.forward(self.model, images)
        with torch.autocast(images.device.type, enabled=False):
            return forward.pooled(plan, self._copy.module(), images), returned

"""`wrap` a model, call the result with pictures, get maps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from camhook.adapters.base import Adapter
from camhook.adapters.timm import model_name
from camhook.capture import Capture, Pass, watching
from camhook.decompose.secants import single_precision
from camhook.dissection import dissected
from camhook.engine.copies import Twin
from camhook.engine.description import Description
from camhook.engine.explanation import Accounted, check_method
from camhook.engine.outputs import size_of
from camhook.engine.plan import Plan
from camhook.engine.tail import Output
from camhook.errors import UnsupportedModelError
from camhook.fitting.probe import Probe
from camhook.images.geometry import Geometry
from camhook.images.photos import Source
from camhook.images.preprocessing import ImageBatch, TensorPhotos
from camhook.probed import ProbedModel
from camhook.results.result import CAMResult

if TYPE_CHECKING:
    from camhook.exporting.files import Exported
    from camhook.exporting.modules import MapModule

__all__ = ["CAM", "Description", "wrap"]


def wrap(
    model: nn.Module,
    *,
    method: str = "auto",
    probe: Probe | str | os.PathLike[str] | None = None,
    adapter: Adapter | None = None,
    target_layer: str | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    data_config: Any = None,
    input_size: tuple[int, int] | None = None,
    output: Output | str | int | None = None,
    strict: bool = False,
) -> CAM:
    """Wrap a trained classifier, so that calling the result tells where in a picture its scores come from.

    The model is neither run nor changed. Where and how the map is read is found on a copy without values.

    Parameters
    ----------
    model
        Any timm, torchvision or transformers classifier of images, or another module alike.
    method
        ``"cam"``: the model's own head; ``"probe"``: a probe on its features; ``"auto"``: the head, unless there is
        none or the probe was fitted on labels.
    probe
        A probe, or the file of one, as `CAM.fit` gives it.
    adapter, target_layer
        How features become positions, and the module that gives them, where camhook should not find out by itself.
    class_names
        Names in order or by index; default timm's for the model.
    data_config
        How photos are preprocessed: timm's dictionary; a member of a torchvision weights enum, or its transform; an
        image processor of transformers, or its configuration. Default timm's own for the model.
    input_size
        (height, width) of the model's input; default read off the model, else off the first call.
    output
        How to get the logits from what the model returns: an index, a key or attribute name, or a function.
    strict
        Raise `CompletenessError` for a map that misses the model's score by more than rounding.

    Raises
    ------
    UnsupportedModelError
        If no place is found where the model's score is a sum over positions; it names what was tried.

    Examples
    --------
    >>> import timm
    >>> cam = wrap(timm.create_model("test_convnext"))
    >>> result = cam(torch.zeros(1, 3, 160, 160))
    >>> result.maps.shape, bool(result.exact)
    (torch.Size([1, 1, 5, 5]), True)
    """
    check_method(method)
    cam = CAM(model, adapter, target_layer, class_names, data_config, input_size, output)
    cam.strict, cam._method = strict, method
    if cam._input_size is not None:
        cam.plan_for(cam._input_size)
    if probe is not None:
        cam.probe = probe if isinstance(probe, Probe) else Probe.load(probe)
    return cam


class CAM(ProbedModel):
    """A wrapped model; made by `wrap`. Calling it explains pictures."""

    strict = False

    @torch.inference_mode(False)
    def __call__(
        self,
        images: Source | Sequence[Source] | Tensor,
        target: Any = None,
        *,
        topk: int | None = None,
        contrast: str | Sequence[int | str] | None = None,
        method: str | None = None,
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
            ``"auto"``, ``"cam"`` or ``"probe"``, as in `wrap`; default what was said there.

        Raises
        ------
        ImageError, TargetError, HookError, CompletenessError
            Each says what was found, what was expected and what to do.
        """
        tensor, batch = self.inputs(images)
        with self.accounted(tensor, method or self._method) as accounted:
            return self._result(accounted, tensor, batch, target, topk, contrast)

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
        plan = self.plan_for(next(iter(self._plans), None) or self._known_size())
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
        logits = self.logits_of(passed.output).detach()
        with torch.no_grad(), torch.autocast(passed.inputs.device.type, enabled=False):
            accounted = self._account(plan, passed.observation, passed.inputs, logits)
            return self._result(accounted, passed.inputs, None, target, topk, contrast)

    def _result(
        self,
        accounted: Accounted,
        tensor: Tensor,
        batch: ImageBatch | None,
        target: Any,
        topk: int | None,
        contrast: Any,
    ) -> CAMResult:
        photos: Sequence[Image.Image] | None = batch.photos if batch else None
        if batch is None and self.preprocessing is not None:
            photos = TensorPhotos(self.preprocessing, tensor)
        return CAMResult(
            **accounted.answer(target, topk, contrast, strict=self.strict),
            model_name=model_name(self.model),
            names=tuple(batch.names if batch else [f"image{i}" for i in range(len(tensor))]),
            geometries=tuple(batch.geometries if batch else [Geometry.identity(size_of(tensor))] * len(tensor)),
            photos=photos,
        )

    def describe(self) -> Description:
        """Say where and how this model's map is read.

        Raises
        ------
        CamhookError
            If that is not known yet, since the input size is not: pass ``input_size=`` to wrap, or explain an image.
        """
        plan = self.plan_for(next(iter(self._plans), None) or self._known_size())
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
        tensor, batch = self.inputs(photo)
        with self.accounted(tensor, self._method) as accounted:
            result = self._result(accounted, tensor, batch, target, None, None)
            return dissected(result, accounted.account, channels=channels)

    def module(
        self,
        target: Any = None,
        *,
        topk: int | None = None,
        input_size: Sequence[int] | None = None,
        method: str | None = None,
    ) -> MapModule:
        """Return the model and its maps as one plain module, whose graph holds no hook: for compilers and exporters.

        Parameters
        ----------
        target
            A class, or a list of them, by index or name; ``"all"``. The same for every image.
        topk
            The so many classes with the highest logits, picked within the graph; default 1.
        input_size
            (height, width) of its images; default the model's own.

        Returns
        -------
        MapModule
            From preprocessed images (B, C, H, W) to logits (B, K) and maps (B, T, h, w), for any B. Its weights are a
            copy.

        Raises
        ------
        UnsupportedModelError
            If what the model does depends on the pictures' values or on how many there are.

        Examples
        --------
        >>> import timm
        >>> module = wrap(timm.create_model("test_resnet")).module(topk=3)
        >>> logits, maps = module(torch.randn(2, 3, 160, 160))
        >>> logits.shape, maps.shape
        (torch.Size([2, 1000]), torch.Size([2, 3, 5, 5]))
        """
        return self._recorded(target, topk, input_size, method, single=False)

    def export(
        self,
        path: str | os.PathLike[str],
        target: Any = None,
        *,
        topk: int | None = None,
        input_size: Sequence[int] | None = None,
        method: str | None = None,
        overwrite: bool = False,
    ) -> Exported:
        """Write the model and its maps to a file, ``.onnx`` or ``.pt2``, and run that again to see that it is the same.

        Preprocessing and class names are written into it (``metadata_props["camhook"]``, as JSON). See `module` for
        the other parameters.

        Returns
        -------
        Exported
            The path, and how far the file's logits and maps are from the model's own.

        Raises
        ------
        OutputError
            If a file is there that camhook did not write, or the path cannot be written to.
        UnsupportedModelError
            If the model cannot be written in that format.
        DependencyError
            If ONNX is asked for and its packages are not installed.
        """
        from camhook.exporting.files import metadata, write

        is_onnx = os.fspath(path).endswith(".onnx")
        module = self._recorded(target, topk, input_size, method, single=is_onnx)
        about = metadata(
            module,
            explains=self.describe().as_dict(),
            head=str(self.plan_for((module.input_shape[1], module.input_shape[2])).head),
            class_names=self.class_names,
            data_config=self.preprocessing.config if self.preprocessing else None,
        )
        return write(module, path, about, overwrite=overwrite)

    def _recorded(
        self, target: Any, topk: int | None, input_size: Sequence[int] | None, method: str | None, *, single: bool
    ) -> MapModule:
        """Record a call on a copy of the model; ``single``: secants in single precision, as ONNX Runtime needs it."""
        from camhook.exporting.modules import MapModule, classes_of, record

        size = input_size or next(iter(self._plans), None) or self._known_size()
        self.plan_for((size[0], size[1]))
        copied = self.like(Twin(self.model).module())
        copied.model_class_names, copied.probe = self.model_class_names, self._probe
        recorded: list[tuple[int, ...] | str] = []

        def compute(images: Tensor) -> tuple[Tensor, Tensor]:
            with copied.accounted(images, method or self._method) as accounted:
                logits, account = accounted.logits, accounted.account
                classes, named = classes_of(target, topk, logits, accounted.class_names)
                recorded.append(named)
                if named == "all" and not account.widens:
                    raise UnsupportedModelError(
                        "The maps of all classes at once cannot be recorded for this tail, which does not accept a "
                        "larger batch. Ask for some classes, or topk=."
                    )
                return logits, account.all_maps() if named == "all" else account.maps(classes)

        shape = (self.in_chans, *size)
        with single_precision() if single else nullcontext():
            graph = record(compute, copied.model, shape, like=self.reference, name=model_name(self.model))
        return MapModule(graph, shape, recorded[0])

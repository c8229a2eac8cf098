"""`CAM`: a wrapped model that explains pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from camhook.anatomy import draw_anatomy
from camhook.capture import Capture, plan_to_capture
from camhook.engine.capture import CapturedPass, capture_pass
from camhook.engine.description import Description
from camhook.engine.explanation import Explanation
from camhook.engine.features import PooledFeatures
from camhook.engine.inputs import size_of
from camhook.engine.reader import ModelReader
from camhook.fitting.probe import Probe
from camhook.images.geometry import Geometry
from camhook.images.photos import Source
from camhook.images.preprocessing import ImageBatch, Preprocessing, TensorPhotos
from camhook.probing import check_method, check_probe, explains_probe, probe_explanation, probe_names
from camhook.results.result import CAMResult
from camhook.targets import ClassNames

if TYPE_CHECKING:
    from camhook.exporting.files import Exported
    from camhook.exporting.modules import MapModule
    from camhook.fitting.reports import FitReport

__all__ = ["CAM"]


class CAM:
    """A wrapped model; made by `wrap`. Calling it explains pictures.

    Parameters
    ----------
    reader
        The model, with what is known of how to run and read it.
    probe
        A probe on its features.
    method, strict
        As in `wrap`.
    """

    def __init__(
        self, reader: ModelReader, *, probe: Probe | None = None, method: str = "auto", strict: bool = False
    ) -> None:
        check_method(method)
        self.reader, self.method, self.strict = reader, method, strict
        self.probe = probe

    @property
    def model(self) -> nn.Module:
        """The live model; the module inside, if it came compiled or parallel."""
        return self.reader.model

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How photos become the model's input, if that is known."""
        return self.reader.preprocessing

    @property
    def class_names(self) -> ClassNames:
        """The names of the classes that are explained by default: the probe's, if it was fitted on labels."""
        uses_probe = explains_probe(self._probe, self.method, has_head=self.reader.has_head)
        return probe_names(self._probe, self.reader.class_names) if uses_probe else self.reader.class_names

    @property
    def probe(self) -> Probe | None:
        """The probe on the model's frozen features, if there is one.

        Setting one raises `ProbeMismatchError` if it was fitted on another model, layer, layout or width.
        """
        return self._probe

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        if probe is not None:
            check_probe(probe, self.reader)
        self._probe = probe

    def inputs(self, images: Any) -> tuple[Tensor, ImageBatch | None]:
        """Return images as the model takes them, (B, C, H, W), and, if they were photos, these and their geometry."""
        return self.reader.inputs(images)

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
        """Explain pictures in one forward pass, which runs in eval mode and changes nothing of the model.

        Parameters
        ----------
        images
            A path, PIL image or uint8 array (H, W, 3), a list of these, or a preprocessed tensor (B, C, H, W).
        target
            A class, by index or name; a list or 1-d tensor of one per image; a list of lists or (B, T) tensor of
            several per image; ``"all"``. Default the predicted class.
        topk
            Instead of a target: the classes with the highest scores, this many per image.
        contrast
            Explain why this class and not those: subtract the mean over these classes, or over the ``"rivals"``, the
            ten others with the highest scores.
        method
            ``"auto"``, ``"cam"`` or ``"probe"``, as in `wrap`; default the one given there.

        Raises
        ------
        ImageError, TargetError, HookError, CompletenessError
            Each says what was found, what was expected and what to do.
        """
        tensor, batch = self.reader.inputs(images)
        return self._result(self.explanation(tensor, method), tensor, batch, target, topk, contrast)

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Capture the caller's own forward pass, in serving, validation or training, and explain it afterwards.

        The pass is not changed by a bit, and no second one is run. What is yielded has ``result(target=None)``, which
        takes what the call ``cam(images, target)`` takes; ask for it before the weights change.

        Raises
        ------
        UnsupportedModelError
            If hooks cannot see the pass (a compiled or parallel model), or the map needs more than one pass.
        HookError
            On leaving the block, if the model did not run in it, or ran twice.

        Examples
        --------
        >>> import camhook, timm
        >>> model = timm.create_model("test_vit").eval()
        >>> cam = camhook.wrap(model)
        >>> with cam.capture() as captured:
        ...     logits = model(torch.zeros(2, 3, 160, 160))
        >>> captured.result().maps.shape
        torch.Size([2, 1, 10, 10])
        """
        with capture_pass(self.model, plan_to_capture(self.reader)) as passed:
            yield Capture(passed, self._finished)

    @torch.inference_mode(False)
    def _finished(self, passed: CapturedPass, target: Any, topk: int | None, contrast: Any) -> CAMResult:
        """Explain a forward pass that the caller ran."""
        return self._result(self.reader.explain_pass(passed), passed.images[0], None, target, topk, contrast)

    def fit(self, data: Any, *, targets: Any = "labels", pool: Any = "gap", **options: Any) -> FitReport:
        """Fit a linear probe on the frozen features, keep it as this CAM's probe, and report its fidelity.

        Parameters
        ----------
        data
            A folder with a folder of images per class, a Dataset or DataLoader, pairs (images, labels), features.
        targets, pool
            ``"labels"``, or ``"logits"``: the model's own; ``"gap"``, or ``"attention"``: the class token's last.
        **options
            ``autocast`` and ``channels_last`` for the model, and those of `camhook.fitting.fit.fit`.
        """
        from camhook.fitting.fit import fit

        model = {name: options.pop(name) for name in ("autocast", "channels_last") if name in options}
        extractor = PooledFeatures(self.reader, pool, **model)
        report, self.probe = fit(extractor, data, targets=targets, **options)
        return report

    def describe(self) -> Description:
        """Describe where and how this model's map is read.

        Raises `CamhookError` while the input size is not known: pass ``input_size=`` to wrap, or explain an image.
        """
        return Description.of(self.reader.name, self.reader.plan)

    @torch.inference_mode(False)
    def anatomy(self, photo: Source | Tensor, target: int | str | None = None, *, channels: int = 5) -> Image.Image:
        """Draw the equation behind a map: photo = channel + ... + the other channels + offset = map, in logits.

        Parameters
        ----------
        photo
            One photo, or a tensor (1, C, H, W).
        target
            The class, by index or name; default the predicted one.
        channels
            How many feature maps to show one by one, each with its weight: those that add most.
        """
        tensor, batch = self.reader.inputs(photo)
        explanation = self.explanation(tensor)
        result = self._result(explanation, tensor, batch, target, None, None)
        return draw_anatomy(result, explanation.decomposition, channels=channels)

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
            The classes with the highest logits, this many, chosen within the graph; default 1.
        input_size
            (height, width) of its images in pixels; default the model's own.

        Returns
        -------
        MapModule
            From preprocessed images (B, C, H, W) to logits (B, K) and maps (B, T, h, w), for any B. It holds copies of
            the weights.

        Raises
        ------
        UnsupportedModelError
            If what the model does depends on the pictures' values or on how many there are.

        Examples
        --------
        >>> import camhook, timm
        >>> module = camhook.wrap(timm.create_model("test_resnet")).module(topk=3)
        >>> logits, maps = module(torch.randn(2, 3, 160, 160))
        >>> logits.shape, maps.shape
        (torch.Size([2, 1000]), torch.Size([2, 3, 5, 5]))
        """
        from camhook.recording import record_module

        return record_module(self._copied(method), target, topk, input_size)

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
        """Write the model and its maps to a file, ``.onnx`` or ``.pt2``, and run that to verify that it gives the same.

        Preprocessing and class names are written into it (``metadata_props["camhook"]``, as JSON). Parameters and
        errors as in `module`.

        Raises
        ------
        OutputError, UnsupportedModelError, DependencyError
            If another file is there, the format cannot express the model, or the packages for ONNX are missing.
        """
        from camhook.recording import export

        return export(self._copied(method), path, target, topk, input_size, overwrite=overwrite)

    def _copied(self, method: str | None) -> CAM:
        """Return a CAM of a structural copy of the model, which shares its tensors and nothing else."""
        return CAM(self.reader.copied(), probe=self._probe, method=method or self.method)

    def explanation(
        self, images: Tensor, method: str | None = None, *, secant_dtype: torch.dtype | None = None
    ) -> Explanation:
        """Run the model once on preprocessed images (B, C, H, W) and decompose its logits, or a probe's scores."""
        has_head = self._probe is None or self.reader.plan_for(size_of(images)).head is not None
        if explains_probe(self._probe, method or self.method, has_head=has_head):
            return probe_explanation(self.reader, self._probe, images)
        return self.reader.explain(images, secant_dtype=secant_dtype)

    def _result(
        self,
        explanation: Explanation,
        images: Tensor,
        batch: ImageBatch | None,
        target: Any,
        topk: int | None,
        contrast: Any,
    ) -> CAMResult:
        photos: Sequence[Image.Image] | None = batch.photos if batch else None
        if batch is None and self.preprocessing is not None:
            photos = TensorPhotos(self.preprocessing, images)
        return CAMResult(
            **explanation.fields(target, topk, contrast, strict=self.strict),
            model_name=self.reader.name,
            names=tuple(batch.names if batch else [f"image{i}" for i in range(len(images))]),
            geometries=tuple(batch.geometries if batch else [Geometry.identity(size_of(images))] * len(images)),
            photos=photos,
        )

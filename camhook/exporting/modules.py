"""Logits and maps of a model as one graph, recorded with `make_fx`, for `torch.compile`, `torch.export` and ONNX.

The computation is run once on a fake tensor whose batch size is symbolic, and every ATen operation of it is recorded,
those of the backward pass through the tail among them. The graph holds no hooks, no torch-function modes and no call of
camhook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from camhook.errors import ImageError, UnsupportedModelError
from camhook.targets import ClassNames, class_index, resolve_targets

__all__ = ["MapModule", "classes_of", "record"]

_BATCH = 97  # the example's batch size: unlike the size of any other axis, so that no comparison identifies the two


class MapModule(nn.Module):
    """A module from images to logits and maps; made by `CAM.module`.

    Its weights are copies: training the model later does not change them. It stays in eval mode, on the device and in
    the dtype of the model when it was recorded.

    Attributes
    ----------
    input_shape : tuple of int
        (C, H, W) of its input images.
    classes : tuple of int or str
        Classes of the maps, in order; ``"all"``; or, say, ``"top 3"``: those with the highest logits.
    """

    def __init__(self, graph: fx.GraphModule, input_shape: Sequence[int], classes: tuple[int, ...] | str) -> None:
        super().__init__()
        self.recorded = graph
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.training = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K) and the maps (B, T, h, w), in logits, of preprocessed images (B, C, H, W).

        The logit minus a map's mean over positions is the offset, which belongs to no position.

        Raises
        ------
        ImageError
            If the images have another size.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ImageError(
                f"Found images of shape {tuple(images.shape)}, expected (B, {', '.join(map(str, self.input_shape))}). "
                "Resize them, or make a module for their size: cam.module(input_size=(H, W))."
            )
        logits, maps = self.recorded(images)
        return logits, maps

    def train(self, mode: bool = True) -> MapModule:
        """Stay in eval mode, in which the graph was recorded."""
        return self


def record(
    compute: Callable[[Tensor], tuple[Tensor, Tensor]],
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    like: Tensor,
    name: str,
) -> fx.GraphModule:
    """Record `compute` as a graph for batches of any size.

    Parameters
    ----------
    compute
        From images (B, C, H, W) to logits and maps. It is called once, with a fake tensor.
    model
        The model whose parameters and buffers it uses; the graph gets copies, named alike.
    input_shape
        (C, H, W) of the images.
    like
        A tensor on the device and of the dtype of the images.
    name
        The model's name, for errors.

    Returns
    -------
    torch.fx.GraphModule

    Raises
    ------
    UnsupportedModelError
        If the forward pass depends on the values of the images, or on the batch size.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    example = like.new_empty((_BATCH, *input_shape))
    sizes: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * 3)
    images = mode.from_tensor(example, symbolic_context=sizes)
    try:
        with mode:
            graph = make_fx(compute, decomposition_table=_DECOMPOSED, _allow_non_fake_inputs=True)(images)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be recorded as a graph: {error}. What it does depends on the pictures' values, so call "
            "cam(images) where maps are needed."
        ) from error
    graph.graph.eliminate_dead_code()
    _copy_weights(graph, model)
    graph.recompile()
    assert mode.shape_env is not None
    if mode.shape_env.replacements:
        raise UnsupportedModelError(
            f"{name} cannot be recorded for batches of any size: its forward pass specialises on the batch size. "
            "Call cam(images) where maps are needed."
        )
    return graph


def classes_of(
    target: Any, topk: int | None, logits: Tensor, names: ClassNames
) -> tuple[Tensor, tuple[int, ...] | str]:
    """Return the classes (B, T) whose maps to record, and what `MapModule.classes` calls them.

    Unlike `resolve_targets`, a list holds several classes, the same for every image; default the top 1.

    Raises
    ------
    TargetError
        If there is no such class.
    """
    if target is None or topk is not None:
        topk = 1 if topk is None else topk
        return resolve_targets(target, topk, logits, names), f"top {topk}"
    if isinstance(target, str) and target == "all":
        return resolve_targets("all", None, logits, names), "all"
    listed = target if isinstance(target, list | tuple) else [target]
    indices = [class_index(each, logits.shape[1], names) for each in listed]
    return torch.tensor([indices], device=logits.device).expand(logits.shape[0], -1), tuple(indices)


def _copy_weights(graph: fx.GraphModule, model: nn.Module) -> None:
    """Replace the tensors that the graph reads by copies, registered as buffers and named as in the model."""
    names = {id(value): name for name, value in [*model.named_parameters(), *model.named_buffers()]}
    reads = [(node, getattr(graph, node.target)) for node in graph.graph.find_nodes(op="get_attr")]
    owned: dict[int, str] = {}
    for name in dict.fromkeys(node.target for node, _ in reads):
        delattr(graph, name)
    for node, value in reads:
        if id(value) not in owned:
            owned[id(value)] = names.get(id(value), node.target).replace(".", "_")
            graph.register_buffer(owned[id(value)], value.detach().clone())
        node.target = owned[id(value)]


def _padded(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """Pad by concatenation: the decomposition that torch has specialises on the batch size."""
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        d = x.ndim - 1 - i
        x = x.narrow(d, max(0, -before), x.shape[d] + min(0, before) + min(0, after))
        ends = [x.new_full((*x.shape[:d], max(0, n), *x.shape[d + 1 :]), value) for n in (before, after)]
        parts = [ends[0]] * (before > 0) + [x] + [ends[1]] * (after > 0)
        x = torch.cat(parts, d) if len(parts) > 1 else x
    return x.clone() if max(pad, default=0) <= 0 else x


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """Return a convolution's gradient with respect to its input, as a transposed convolution."""
    if transposed or any(output_mask[1:]):
        return NotImplemented
    size, kernel = x.shape[2:], weight.shape[2:]
    extra = [
        size[d] - ((grad.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1)
        for d in range(len(kernel))
    ]
    return torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, extra, groups), None, None


_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.constant_pad_nd.default: _padded,
    torch.ops.aten.convolution_backward.default: _convolution_backward,
}

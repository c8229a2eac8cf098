"""A forward pass and its maps as one plain module: recorded once, as the tensor operations that the engine made of it.

The engine itself is run on a batch without values whose size is a symbol, and every operation that reaches torch, those
of the backward pass through the tail among them, is written down. What is left is a graph without hooks, modes or a
line of camhook in it, so whatever takes a graph takes it: `torch.compile`, `torch.export`, ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from camhook.errors import ImageError, UnsupportedModelError

__all__ = ["MapModule", "record"]

_BATCH = 97  # the example's batch size: one that no other axis has, or a comparison might take the two for the same


class MapModule(nn.Module):
    """From images to logits and maps; made by `CAM.module`.

    Its weights are a copy: training the model later does not change them. It is always in eval mode, on the device and
    in the dtype that the model had.

    Attributes
    ----------
    input_shape : tuple of int
        (C, H, W) of the images it takes.
    classes : tuple of int or str
        The classes whose maps it gives, in order; ``"all"``; or ``"top 3"``: those with the highest logits.
    """

    def __init__(self, graph: fx.GraphModule, input_shape: Sequence[int], classes: tuple[int, ...] | str) -> None:
        super().__init__()
        self.recorded = graph
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.training = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K) and the maps (B, T, h, w) of preprocessed images (B, C, H, W).

        A map's mean over positions is what the positions add to the logit: the logit less that is the offset.

        Raises
        ------
        ImageError
            If the images are of another size.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ImageError(
                f"Found images of shape {tuple(images.shape)}, expected (B, {', '.join(map(str, self.input_shape))}). "
                "Resize them, or make a module for their size: cam.module(input_size=(H, W))."
            )
        logits, maps = self.recorded(images)
        return logits, maps

    def train(self, mode: bool = True) -> MapModule:
        """Stay in eval mode: what was recorded is the model's behaviour there."""
        return self


def record(
    compute: Callable[[Tensor], tuple[Tensor, Tensor]],
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    like: Tensor,
    name: str,
) -> fx.GraphModule:
    """Write down what `compute` does with a batch of images of that shape (C, H, W), for batches of any size.

    Parameters
    ----------
    compute
        From images to logits and maps. It sees a tensor without values.
    model
        Whose parameters and buffers it uses; the graph's are copies, under the same names.
    like
        A tensor on the device and of the dtype of the images.
    name
        What to call the model in an error.

    Raises
    ------
    UnsupportedModelError
        If the model cannot be recorded, since what it does depends on the pictures' values or on how many there are.
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
            f"{name} cannot be recorded as a graph: {error}. What it does depends on the pictures' values, so call the "
            "CAM itself, cam(images), where the map is needed."
        ) from error
    graph.graph.eliminate_dead_code()
    _own(graph, model)
    graph.recompile()
    assert mode.shape_env is not None
    if mode.shape_env.replacements:
        raise UnsupportedModelError(
            f"{name} cannot be recorded for batches of any size: its forward pass fixes the batch size on the way. "
            "Call the CAM itself, cam(images), where the map is needed."
        )
    return graph


def _own(graph: fx.GraphModule, model: nn.Module) -> None:
    """Give the graph copies of the tensors that it reads, as buffers, named as in the model."""
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
    """Pad by joining: torch's own step fixes the batch size."""
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
    """Take a convolution's slope as the transposed convolution that it is; of its weights none is wanted."""
    if transposed or any(output_mask[1:]):
        return NotImplemented
    given, gave = x.shape[2:], grad.shape[2:]
    kernel = weight.shape[2:]
    left = [
        given[d] - ((gave[d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1)
        for d in range(len(kernel))
    ]
    return torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, left, groups), None, None


_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.constant_pad_nd.default: _padded,
    torch.ops.aten.convolution_backward.default: _convolution_backward,
}

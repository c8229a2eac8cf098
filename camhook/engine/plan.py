"""Plan: at which feature points a model is read, how these are laid out, and what its tail does; plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from camhook.adapters.base import Layout
from camhook.engine.class_tokens import TokenPath
from camhook.engine.head import Head
from camhook.engine.points import FeaturePoint
from camhook.engine.tail import Output, Tail
from camhook.errors import UnsupportedModelError

__all__ = ["Entry", "Features", "Plan"]

Entry = Literal["forward_head", "forward"]


@dataclass(frozen=True)
class Features:
    """One tensor with positions that the tail reads.

    Attributes
    ----------
    point
        Where it is captured.
    layout, shape, grid_size
        How it is laid out, its shape (batch of 2) and grid (h, w) for the input that was traced.
    """

    point: FeaturePoint
    layout: Layout
    shape: tuple[int, ...]
    grid_size: tuple[int, int]

    @property
    def num_channels(self) -> int:
        """How many channels C it has."""
        return self.shape[1 if self.layout.axes == "NCHW" else -1]


@dataclass(frozen=True)
class Plan:
    """What `camhook.wrap` finds of a model: plain data, no tensors.

    Attributes
    ----------
    features
        The tensors that are captured.
    tokens
        The path of class tokens, if the map is made of what they read.
    entry
        The method that runs the tail. Before the features it runs on shapes alone.
    skipped_modules
        Modules that are finished before any feature point is reached: the tail does not run them.
    has_bypass
        A skip connection bypasses the features, so that the tail costs a second forward pass.
    adapter
        Name of the adapter whose layouts were taken.
    head
        What the tail does; None for an encoder without a classifier.
    encoder, reading
        The last features with positions, and the path of class tokens that read them, if any: what a probe may pool.
    """

    features: tuple[Features, ...]
    tokens: TokenPath | None
    entry: Entry
    skipped_modules: tuple[str, ...]
    has_bypass: bool
    adapter: str
    head: Head | None
    input_size: tuple[int, int]
    num_classes: int
    encoder: Features | None
    reading: TokenPath | None

    @property
    def target_layer(self) -> str:
        """Where the map is read, in words."""
        points = [str(each.point) for each in self.features]
        if self.tokens is not None:
            points.insert(0, f"{len(self.tokens.calls)} attentions from {self.tokens.entry} on")
        return ", ".join(points)

    @property
    def forward_passes(self) -> int:
        """Forward passes through the backbone that a call costs."""
        return 2 if self.has_bypass else 1

    @property
    def grid_size(self) -> tuple[int, int]:
        """The finest grid (h, w) among all that is read, which is the map's."""
        sizes = [each.grid_size for each in self.features]
        sizes += [call.grid_size for call in self.tokens.calls] if self.tokens else []
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    @property
    def is_pooled(self) -> bool:
        """Whether the score is a function of the mean of one tensor's positions."""
        return self.tokens is None and len(self.features) == 1 and self.head is not None and self.head.pooling == "mean"

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens belong to no position."""
        if self.tokens is not None:
            return self.tokens.num_prefix_tokens
        return max(each.layout.num_prefix_tokens for each in self.features)

    def for_probe(self, encoder: Features, pooling: str) -> Plan:
        """Return the plan of a probe: the features that it pools and, for attention pooling, what class tokens read.

        Raises
        ------
        UnsupportedModelError
            If there is no such pooling, or no class token whose attention could pool.
        """
        if pooling not in ("gap", "attention"):
            raise UnsupportedModelError(f"pooling={pooling!r}: 'gap' or 'attention' was expected.")
        reading = self.reading if pooling == "attention" else None
        if pooling == "attention" and (
            reading is None or not any(call.grid_size == encoder.grid_size for call in reading.calls)
        ):
            raise UnsupportedModelError(
                f"No class token was found that reads the features at {encoder.point}, so there is no attention to "
                "pool by. Take 'gap'."
            )
        return replace(self, features=(encoder,), tokens=reading, skipped_modules=(), head=None)

    def tail(self, module: nn.Module, output: Output) -> Tail:
        """Return the tail of a copy of this model."""
        return Tail(
            module,
            entry=self.entry,
            points=[each.point for each in self.features],
            tokens=self.tokens,
            skipped_modules=self.skipped_modules,
            output=output,
        )

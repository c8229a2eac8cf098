"""The outcome of wrapping: where a model's map is read, how its features are laid out, what the tail does with them."""

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


@dataclass(frozen=True)
class Plan:
    """Where a model's map is read and how.

    Attributes
    ----------
    features
        The tensors that are captured.
    tokens
        The path of class tokens, if their reads are what the map is made of.
    entry
        The method that runs the tail. Before the features it runs on shapes alone.
    head
        What the tail does; None for an encoder without a classifier.
    stubs
        Modules that are done before any of this is reached, and are not run again.
    encoder, reading
        The last features with positions, and the path of class tokens that read them, if any: what a probe may pool.
    passes
        2 if something comes round the features, so that the tail costs a second pass; else 1.
    """

    features: tuple[Features, ...]
    tokens: TokenPath | None
    entry: Entry
    stubs: tuple[str, ...]
    passes: int
    adapter: str
    head: Head | None
    input_size: tuple[int, int]
    num_classes: int
    encoder: Features | None
    reading: TokenPath | None

    @property
    def target_layer(self) -> str:
        """Where the map is read, in words."""
        places = [str(each.point) for each in self.features]
        if self.tokens is not None:
            places.insert(0, f"{len(self.tokens.reads)} attentions from {self.tokens.entry} on")
        return ", ".join(places)

    @property
    def grid_size(self) -> tuple[int, int]:
        """The finest grid (h, w) among all that is read, which is the map's."""
        sizes = [each.grid_size for each in self.features]
        sizes += [read.grid_size for read in self.tokens.reads] if self.tokens else []
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    @property
    def is_pooled(self) -> bool:
        """Whether the score is a function of the mean of one tensor's positions."""
        return self.tokens is None and len(self.features) == 1 and self.head is not None and self.head.pooling == "mean"

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens belong to no position."""
        return self.tokens.prefix if self.tokens else max(each.layout.num_prefix_tokens for each in self.features)

    def for_probe(self, encoder: Features, pooling: str) -> Plan:
        """Return the plan of a probe: the features that it pools and, if it is to, what class tokens read of them.

        Raises
        ------
        UnsupportedModelError
            If there is no such pooling, or no class token whose attention could pool.
        """
        if pooling not in ("gap", "attention"):
            raise UnsupportedModelError(f"pooling={pooling!r}: 'gap' or 'attention' was expected.")
        reading = self.reading if pooling == "attention" else None
        if pooling == "attention" and (
            reading is None or not any(read.grid_size == encoder.grid_size for read in reading.reads)
        ):
            raise UnsupportedModelError(
                f"No class token was found that reads the features at {encoder.point}, so there is no attention to "
                "pool by. Take 'gap'."
            )
        return replace(self, features=(encoder,), tokens=reading, stubs=(), head=None)

    def tail(self, module: nn.Module, output: Output) -> Tail:
        """Return the tail of this model, or of a copy of it."""
        return Tail(module, self.entry, [each.point for each in self.features], self.tokens, self.stubs, output)

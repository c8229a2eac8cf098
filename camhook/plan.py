"""The outcome of wrapping: where a model's map is read, how its features are laid out, what the tail does with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from camhook.adapters.base import Layout
from camhook.errors import UnsupportedModelError
from camhook.heads import Head
from camhook.tails import Output, Tail
from camhook.tokens import TokenPath
from camhook.tracing import FeaturePoint

__all__ = ["Entry", "Features", "Plan", "has_no_head", "head_names", "model_name"]

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


def has_no_head(model: nn.Module) -> bool:
    """Tell whether a timm model was made without a classifier."""
    if getattr(model, "num_classes", None) == 0:
        return True
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    parts: list[Any] = list(classifier) if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]
    return bool(parts) and all(isinstance(part, nn.Identity) for part in parts)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that classify, as a timm model's config gives them."""
    config = getattr(model, "pretrained_cfg", None)
    names = config.get("classifier") if isinstance(config, dict) else None
    return (names,) if isinstance(names, str) else tuple(names or ())


def model_name(model: nn.Module) -> str:
    """Return timm's name of the architecture, or the class name."""
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    return architecture or type(model).__name__

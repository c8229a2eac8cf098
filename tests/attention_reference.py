"""An implementation of maps of class tokens and attention pools that shares no code with the engine.

All in float64, written out from the models' weights: softmax by hand, one head after the other, block by block, and the
straightened tail run for every position alone. Adding a family is a row of `FAMILIES` and a function that reads its
weights into `Block`s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_CLASSES = 40  # more than the engine takes one by one, so that "all" goes its own way
GRID = (3, 4)
TOLERANCE = 1e-9  # of the largest value

Act = Callable[[Tensor], Tensor]
Mode = Literal["full", "rest", "straight", "acting"]
Reads = list[list[Tensor]]  # for each block and head, (B, prefix, d)


def gelu_by_hand(u: Tensor) -> Tensor:
    return u * torch.erfc(-u / 2**0.5) / 2


def _silu(u: Tensor) -> Tensor:
    return u / (1 + torch.exp(-u))


# What a network is made of.


@dataclass(frozen=True)
class Affine:
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: Any) -> Affine:
        return cls(layer.weight, layer.bias)

    @classmethod
    def thirds(cls, weight: Tensor, bias: Tensor | None) -> tuple[Affine, Affine, Affine]:
        size = len(weight) // 3
        parts = (slice(0, size), slice(size, 2 * size), slice(2 * size, None))
        one, two, three = (cls(weight[part], None if bias is None else bias[part]) for part in parts)
        return one, two, three

    def __call__(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, layer: Any) -> Norm | None:
        return cls(layer.weight, layer.bias, layer.eps) if hasattr(layer, "eps") else None

    def scale(self, x: Tensor) -> Tensor:
        return 1 / torch.sqrt(((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + self.eps)

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        scale = self.scale(x) if scale is None else scale
        return (x - x.mean(-1, keepdim=True)) * scale * self.weight + self.bias


def _parts(x: Tensor, num_heads: int) -> list[Tensor]:
    """Each head's channels."""
    width = x.shape[-1] // num_heads
    return [x[..., h * width : (h + 1) * width] for h in range(num_heads)]


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights (B, rows, keys) of one head."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    odds = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return odds / odds.sum(-1, keepdim=True)


def _softmax(query: Tensor, key: Tensor, num_heads: int) -> list[Tensor]:
    return [_weights(q, k) for q, k in zip(_parts(query, num_heads), _parts(key, num_heads), strict=True)]


@dataclass(frozen=True)
class Block:
    """x + gain1 * attention(norm1(x)), then x + gain2 * mlp(norm2(x))."""

    norm1: Norm
    query: Affine
    key: Affine
    value: Affine
    num_heads: int
    out: Affine
    norm2: Norm
    up: Affine
    down: Affine
    act: Act = gelu_by_hand
    gate: Affine | None = None
    """In a gated MLP the activation acts on this, and the product with `up` is what goes down."""
    gains: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    read_norm: Norm | None = None
    """Of what the heads have read."""
    read_gate: Affine | None = None
    """What has been read is multiplied by the sigmoid of this of norm1(x)."""
    hidden_norm: Norm | None = None
    """Within the MLP."""
    turns: tuple[Tensor, Tensor] | None = None
    """Sine and cosine (N, d) of the rotary embedding, of patches."""

    def heads(self, x: Tensor, of: Affine) -> list[Tensor]:
        return _parts(of(x), self.num_heads)

    def attend(self, tokens: Tensor, prefix: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each head the attention weights (B, L, L) and the values (B, L, d)."""
        normed, weights = self.norm1(tokens), []
        for query, key in zip(self.heads(normed, self.query), self.heads(normed, self.key), strict=True):
            query = self.query_norm(query) if self.query_norm else query
            key = self.key_norm(key) if self.key_norm else key
            query, key = self._turned(query, prefix), self._turned(key, prefix)
            weights.append(_weights(query, key))
        return weights, self.heads(normed, self.value)

    def _turned(self, x: Tensor, prefix: int) -> Tensor:
        if self.turns is None:
            return x
        sine, cosine = self.turns
        x = x.clone()
        even, odd = x[:, prefix:, 0::2].clone(), x[:, prefix:, 1::2].clone()
        x[:, prefix:, 0::2] = even * cosine[:, 0::2] - odd * sine[:, 0::2]
        x[:, prefix:, 1::2] = odd * cosine[:, 1::2] + even * sine[:, 1::2]
        return x


@dataclass(frozen=True)
class Latent:
    """A query that reads all tokens at the end, class tokens too; what it reads goes through an MLP."""

    query: Tensor
    key: Affine
    value: Affine
    num_heads: int
    out: Affine
    mlp: tuple[Norm, Affine, Affine]
    bias_is_rest: bool = False
    """The patches' vectors are what is live, and not their values, which have a bias."""


@dataclass(frozen=True)
class Net:
    """A transformer with class tokens: the mean over the heads of what each makes of its row."""

    embed: Act
    prefix: int
    blocks: Sequence[Block]
    norm: Norm
    heads: Sequence[Affine]
    before_head: Affine | None = None
    """Followed by tanh."""
    latent: Latent | None = None
    patches_stay: bool = False
    """Class attention: only class tokens go through the blocks."""


@dataclass(frozen=True)
class Pool:
    """A head that reads features (B, N, C) with weights (B, rows=1, keys) for each head; the first keys are no patch.

    What is read, (B, 1, C), goes out, perhaps through an MLP, and to the head.
    """

    features: Tensor
    weights: Sequence[Tensor]
    keys: Act
    """From features to the vectors whose values are read."""
    value: Affine
    out: Affine
    mlp: tuple[Norm, Affine, Affine] | None = None
    head: Affine | None = None


# The map, held, straightened and taken apart.


class Held:
    """Scales of norms at the full features; operands of activations and products there and at the rest."""

    def __init__(self) -> None:
        self.mode: Mode = "full"
        self._scales: dict[str, Tensor] = {}
        self._ends: dict[tuple[str, str], tuple[Tensor, ...]] = {}

    def norm(self, place: str, norm: Norm | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        if self.mode == "full":
            self._scales[place] = norm.scale(x)
        return norm(x, self._scales[place])

    def act(self, place: str, act: Act, u: Tensor) -> Tensor:
        if self.mode != "straight":
            self._ends[place, self.mode] = (u,)
            return act(u)
        (full,), (rest,) = self._ends[place, "full"], self._ends[place, "rest"]
        return act(rest) + secant_by_hand(act, rest, full) * (u - rest)

    def times(self, place: str, a: Tensor, b: Tensor) -> Tensor:
        if self.mode != "straight":
            self._ends[place, self.mode] = (a, b)
            return a * b
        (full_a, full_b), (rest_a, rest_b) = self._ends[place, "full"], self._ends[place, "rest"]
        return rest_a * rest_b + (full_b + rest_b) / 2 * (a - rest_a) + (full_a + rest_a) / 2 * (b - rest_b)


def secant_by_hand(act: Act, rest: Tensor, full: Tensor) -> Tensor:
    step = full - rest
    near = step.abs() < 1e-6
    with torch.enable_grad():
        middle = ((rest + full) / 2).detach().requires_grad_()
        (slope,) = torch.autograd.grad(act(middle).sum(), middle)
    return torch.where(near, slope, (act(full) - act(rest)) / torch.where(near, torch.ones_like(step), step))


class TokenReference:
    """Logits, offset and maps of a net on images, by what its class tokens read."""

    def __init__(self, net: Net, images: Tensor) -> None:
        self.net, self._held = net, Held()
        prefix, tokens = net.prefix, net.embed(images)
        self._start = tokens[:, :prefix]
        self._weights: Reads = []
        self._values: Reads = []
        for block in net.blocks:
            weights, values = block.attend(tokens, prefix)
            self._weights.append([each[:, :prefix] for each in weights])
            self._values.append(values)
            rows = prefix if net.patches_stay else tokens.shape[1]
            read = torch.cat([w[:, :rows] @ v for w, v in zip(weights, values, strict=True)], -1)
            moved = _onwards(block, tokens[:, :rows], block.norm1(tokens[:, :rows]), read, "", Held())
            tokens = torch.cat((moved, tokens[:, rows:]), 1)
        rows_at_the_end = tokens[:, :prefix]
        self.count = tokens.shape[1] - prefix
        if net.latent is not None:
            tokens, latent = net.norm(tokens), net.latent
            self._weights.append(_softmax(latent.query, latent.key(tokens), latent.num_heads))
            value = Affine(latent.value.weight, None) if latent.bias_is_rest else latent.value
            self._values.append(_parts(value(tokens), latent.num_heads))
        self.full = self._combine(lambda w, v: w[..., prefix:] @ v[:, prefix:])
        self.forward_logits = self._classify(rows_at_the_end, self.full[-1], Held())
        self.none = [[torch.zeros_like(read) for read in heads] for heads in self.full]
        self.logits = self.tail(self.full, "full")
        self.offset = self.tail(self.none, "rest")

    def tail(self, reads: Reads, mode: Mode) -> Tensor:
        """The logits (B, K), given what the class tokens read of the patches."""
        held, rows = self._held, self._start
        held.mode = mode
        for i, block in enumerate(self.net.blocks):  # a latent query's reads come after theirs
            normed = held.norm(f"{i} norm1", block.norm1, rows)
            own = block.heads(normed, block.value)
            read = [w[..., : self.net.prefix] @ v for w, v in zip(self._weights[i], own, strict=True)]
            read = [mine + patches for mine, patches in zip(read, reads[i], strict=True)]
            rows = _onwards(block, rows, normed, torch.cat(read, -1), f"{i} ", held)
        return self._classify(rows, reads[-1], held)

    def _classify(self, rows: Tensor, last: list[Tensor], held: Held) -> Tensor:
        rows, latent, prefix = held.norm("norm", self.net.norm, rows), self.net.latent, self.net.prefix
        if latent is not None:
            own = _parts(latent.value(rows), latent.num_heads)
            read = [w[..., :prefix] @ v + of for w, v, of in zip(self._weights[-1], own, last, strict=True)]
            if latent.bias_is_rest and latent.value.bias is not None:
                biases = latent.value.bias.chunk(latent.num_heads)
                shares = [w[..., prefix:].sum(-1, keepdim=True) for w in self._weights[-1]]
                read = [r + share * b for r, share, b in zip(read, shares, biases, strict=True)]
            rows = _through(latent.mlp, latent.out(torch.cat(read, -1)), held)
        if self.net.before_head is not None:
            rows = held.act("before_head", torch.tanh, self.net.before_head(rows))
        return sum((head(rows[:, i]) for i, head in enumerate(self.net.heads)), torch.zeros(())) / len(self.net.heads)

    def _combine(self, read: Callable[[Tensor, Tensor], Tensor]) -> Reads:
        pairs = zip(self._weights, self._values, strict=True)
        return [[read(w, v) for w, v in zip(weights, values, strict=True)] for weights, values in pairs]

    def alone(self, position: int) -> Reads:
        """What the class tokens read at this position."""
        at = self.net.prefix + position
        return self._combine(lambda w, v: w[..., at, None] * v[:, at, None])

    def maps(self, keep: Callable[[Reads], Reads] = lambda reads: reads) -> Tensor:
        """All classes' maps (B, K, N), or those of a part of the reads."""
        columns = [self.tail(keep(self.alone(p)), "straight") - self.offset for p in range(self.count)]
        return self.count * torch.stack(columns, -1)

    def integrated(self, targets: Tensor, shares: Tensor) -> Tensor:
        """Maps (B, N) of one class an image by the slopes' mean over these shares of the path, activations acting."""
        slopes = [[torch.zeros_like(read) for read in heads] for heads in self.full]
        for share in shares:
            given = [[(share * read).detach().requires_grad_() for read in heads] for heads in self.full]
            with torch.enable_grad():
                score = self.tail(given, "acting").gather(1, targets[:, None]).sum()
                each = iter(torch.autograd.grad(score, [read for heads in given for read in heads]))
            slopes = [[total + next(each) / len(shares) for total in heads] for heads in slopes]
        columns = []
        for position in range(self.count):
            alone = self.alone(position)
            products = [
                (s * r).sum((1, 2))
                for b, reads in zip(slopes, alone, strict=True)
                for s, r in zip(b, reads, strict=True)
            ]
            columns.append(torch.stack(products).sum(0))
        return self.count * torch.stack(columns, -1)


def _onwards(block: Block, rows: Tensor, normed: Tensor, read: Tensor, place: str, held: Held) -> Tensor:
    """From what the heads of these rows read to the rows that leave the block."""
    read = held.norm(f"{place}read", block.read_norm, read)
    if block.read_gate is not None:
        read = held.times(f"{place}gated", read, held.act(f"{place}gate", torch.sigmoid, block.read_gate(normed)))
    rows = rows + block.gains[0] * block.out(read)
    normed = held.norm(f"{place}norm2", block.norm2, rows)
    if block.gate is None:
        hidden = held.act(f"{place}act", block.act, block.up(normed))
    else:
        gate = held.act(f"{place}act", block.act, block.gate(normed))
        hidden = held.times(f"{place}product", gate, block.up(normed))
    return rows + block.gains[1] * block.down(held.norm(f"{place}hidden", block.hidden_norm, hidden))


def _through(mlp: tuple[Norm, Affine, Affine], x: Tensor, held: Held) -> Tensor:
    norm, up, down = mlp
    return x + down(held.act("pool act", gelu_by_hand, up(held.norm("pool norm", norm, x))))


class PoolReference:
    """Logits, offset and maps of an attention pool, by the features that it reads."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self._held = pool, Held()
        self.count = pool.features.shape[1]
        self.full, self.none = pool.features, torch.zeros_like(pool.features)
        self.logits = self.forward_logits = self.tail(self.full, "full")
        self.offset = self.tail(self.none, "rest")

    def tail(self, features: Tensor, mode: Mode) -> Tensor:
        pool, held = self.pool, self._held
        held.mode = mode
        values = _parts(pool.value(pool.keys(features)), len(pool.weights))
        read = [w @ v for w, v in zip(pool.weights, values, strict=True)]
        x = pool.out(torch.cat(read, -1))
        x = (x if pool.mlp is None else _through(pool.mlp, x, held))[:, 0]
        return x if pool.head is None else pool.head(x)

    def maps(self) -> Tensor:
        columns = []
        for position in range(self.count):
            alone = self.none.clone()
            alone[:, position] = self.full[:, position]
            columns.append(self.tail(alone, "straight") - self.offset)
        return self.count * torch.stack(columns, -1)


# Weights read from the models.


def _embedding(weight: Tensor, bias: Tensor, before: Sequence[Tensor], positions: Tensor | None) -> Act:
    """Patches by a matrix product, after the tokens `before` them; positions are added to all, or to patches only."""

    def embed(images: Tensor) -> Tensor:
        patches = F.unfold(images, weight.shape[2:], stride=weight.shape[2:]).mT @ weight.flatten(1).T + bias
        first = [token.expand(len(images), -1, -1) for token in before]
        if positions is None:
            return torch.cat((*first, patches), 1)
        if positions.shape[1] == patches.shape[1]:
            return torch.cat((*first, patches + positions), 1)
        return torch.cat((*first, patches), 1) + positions

    return embed


def _timm_embedding(model: Any) -> Act:
    tokens = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    conv = model.patch_embed.proj
    return _embedding(conv.weight, conv.bias, [t for t in tokens if t is not None], model.pos_embed)


def _scale(layer: Any) -> Tensor | float:
    scale: Tensor | float = getattr(layer, "gamma", 1.0)
    return scale


def _vit_block(block: Any) -> Block:
    query, key, value = Affine.thirds(block.attn.qkv.weight, block.attn.qkv.bias)
    return Block(
        norm1=_norm(block.norm1), query=query, key=key, value=value, num_heads=block.attn.num_heads,
        out=Affine.of(block.attn.proj), norm2=_norm(block.norm2), up=Affine.of(block.mlp.fc1),
        down=Affine.of(block.mlp.fc2), gains=(_scale(block.ls1), _scale(block.ls2)),
        query_norm=Norm.of(block.attn.q_norm), key_norm=Norm.of(block.attn.k_norm),
        read_norm=Norm.of(block.attn.norm), read_gate=block.attn.gate and Affine.of(block.attn.gate),
    )  # fmt: skip


def _norm(layer: Any) -> Norm:
    norm = Norm.of(layer)
    assert norm is not None
    return norm


def vit(model: Any) -> Net:
    """timm's VisionTransformer, with whatever prefix tokens, and its distilled kind."""
    heads = [Affine.of(head) for head in (model.head, getattr(model, "head_dist", None)) if head is not None]
    blocks = [_vit_block(block) for block in model.blocks]
    return Net(_timm_embedding(model), model.num_prefix_tokens, blocks, _norm(model.norm), heads)


def read_cait(model: Any) -> Net:
    patches = _embedding(model.patch_embed.proj.weight, model.patch_embed.proj.bias, [], model.pos_embed)

    def embed(images: Tensor) -> Tensor:  # no class token before these blocks, so nothing of theirs is at issue
        return torch.cat((model.cls_token.expand(len(images), -1, -1), model.blocks(patches(images))), 1)

    blocks = [
        Block(
            norm1=_norm(block.norm1), query=Affine.of(block.attn.q), key=Affine.of(block.attn.k),
            value=Affine.of(block.attn.v), num_heads=block.attn.num_heads, out=Affine.of(block.attn.proj),
            norm2=_norm(block.norm2), up=Affine.of(block.mlp.fc1), down=Affine.of(block.mlp.fc2),
            gains=(block.gamma_1, block.gamma_2),
        )
        for block in model.blocks_token_only
    ]  # fmt: skip
    return Net(embed, 1, blocks, _norm(model.norm), [Affine.of(model.head)], patches_stay=True)


def _eva_block(block: Any, turns: tuple[Tensor, Tensor]) -> Block:
    attn, mlp = block.attn, block.mlp
    if attn.qkv is None:
        query, key, value = Affine.of(attn.q_proj), Affine.of(attn.k_proj), Affine.of(attn.v_proj)
    else:
        biases = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        query, key, value = Affine.thirds(attn.qkv.weight, biases)
    if hasattr(mlp, "fc1_g"):
        gate, up = Affine.of(mlp.fc1_g), Affine.of(mlp.fc1_x)
    else:
        half = len(mlp.fc1.weight) // 2
        gate = Affine(mlp.fc1.weight[:half], mlp.fc1.bias[:half])
        up = Affine(mlp.fc1.weight[half:], mlp.fc1.bias[half:])
    return Block(
        norm1=_norm(block.norm1), query=query, key=key, value=value, num_heads=attn.num_heads,
        out=Affine.of(attn.proj), norm2=_norm(block.norm2), up=up, down=Affine.of(mlp.fc2), act=_silu, gate=gate,
        gains=(1.0 if block.gamma_1 is None else block.gamma_1, 1.0 if block.gamma_2 is None else block.gamma_2),
        read_norm=Norm.of(attn.norm), hidden_norm=Norm.of(mlp.norm), turns=turns,
    )  # fmt: skip


def read_eva(model: Any) -> Net:
    sine, cosine = model.rope.pos_embed.chunk(2, -1)
    _check_turns(sine, cosine)
    blocks = [_eva_block(block, (sine, cosine)) for block in model.blocks]
    return Net(_timm_embedding(model), model.num_prefix_tokens, blocks, _norm(model.norm), [Affine.of(model.head)])


def _check_turns(sine: Tensor, cosine: Tensor) -> None:
    """The cached angles are those of rows, then of columns, each in falling frequencies, every one for two channels."""
    bands = 10000.0 ** -torch.arange(0, 1, 4 / sine.shape[1], dtype=sine.dtype)
    for position in range(len(sine)):
        row, column = divmod(position, GRID[1])
        angles = torch.cat((row * bands, column * bands)).repeat_interleave(2)
        assert torch.allclose(sine[position], angles.sin(), atol=1e-6)
        assert torch.allclose(cosine[position], angles.cos(), atol=1e-6)


def read_torchvision(model: Any) -> Net:
    blocks = []
    for layer in model.encoder.layers:
        attn, mlp = layer.self_attention, layer.mlp
        query, key, value = Affine.thirds(attn.in_proj_weight, attn.in_proj_bias)
        blocks.append(
            Block(
                norm1=_norm(layer.ln_1), query=query, key=key, value=value, num_heads=attn.num_heads,
                out=Affine.of(attn.out_proj), norm2=_norm(layer.ln_2), up=Affine.of(mlp[0]), down=Affine.of(mlp[3]),
            )
        )  # fmt: skip
    conv, positions = model.conv_proj, model.encoder.pos_embedding
    embed = _embedding(conv.weight, conv.bias, [model.class_token], positions)
    before = getattr(model.heads, "pre_logits", None)
    net = Net(embed, 1, blocks, _norm(model.encoder.ln), [Affine.of(model.heads.head)])
    return net if before is None else replace(net, before_head=Affine.of(before))


def read_transformers(model: Any) -> Net:
    blocks = [
        Block(
            norm1=_norm(layer.layernorm_before), query=Affine.of(layer.attention.q_proj),
            key=Affine.of(layer.attention.k_proj), value=Affine.of(layer.attention.v_proj),
            num_heads=layer.attention.num_attention_heads, out=Affine.of(layer.attention.o_proj),
            norm2=_norm(layer.layernorm_after), up=Affine.of(layer.mlp.fc1), down=Affine.of(layer.mlp.fc2),
        )
        for layer in model.vit.layers
    ]  # fmt: skip
    start = model.vit.embeddings
    conv = start.patch_embeddings.projection
    embed = _embedding(conv.weight, conv.bias, [start.cls_token], start.position_embeddings)
    return Net(embed, 1, blocks, _norm(model.vit.layernorm), [Affine.of(model.classifier)])


def _latent(model: Any, bias_is_rest: bool = False) -> Latent:
    head = model.attn_pool
    key, value = (Affine(w, b) for w, b in zip(head.kv.weight.chunk(2), head.kv.bias.chunk(2), strict=True))
    mlp = (_norm(head.norm), Affine.of(head.mlp.fc1), Affine.of(head.mlp.fc2))
    query = Affine.of(head.q)(head.latent)
    return Latent(query, key, value, head.num_heads, Affine.of(head.proj), mlp, bias_is_rest)


def read_map_head(model: Any, images: Tensor) -> Pool:
    """A latent query on the features of patches; class tokens are not among its keys."""
    latent = _latent(model)
    features = model.forward_features(images)[:, model.num_prefix_tokens :]
    weights = _softmax(latent.query, latent.key(features), latent.num_heads)
    return Pool(features, weights, lambda x: x, latent.value, latent.out, latent.mlp, Affine.of(model.head))


def read_map_head_with_prefix(model: Any) -> Net:
    """Class tokens are among its keys, so what they have read counts too.

    A single class token and the latent query are as many, and so the query's reads are found like its own; else those
    of the final features are.
    """
    return replace(vit(model), latent=_latent(model, bias_is_rest=model.num_prefix_tokens > 1))


def read_clip(model: Any, images: Tensor) -> Pool:
    """The mean patch reads all patches, and itself first."""
    head = model.head
    features = model.forward_features(images).flatten(2).mT

    def keys(x: Tensor) -> Tensor:
        positions: Tensor = head.pos_embed
        return torch.cat((sum(x.unbind(1), torch.zeros(())).unsqueeze(1) / x.shape[1], x), 1) + positions

    vectors = keys(features)
    weights = _softmax(Affine.of(head.q)(vectors[:, :1]), Affine.of(head.k)(vectors), head.num_heads)
    return Pool(features, weights, keys, Affine.of(head.v), Affine.of(head.proj))


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value expected."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())

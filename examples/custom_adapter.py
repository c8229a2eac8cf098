"""Teach camhook a family of models that it does not know, with an adapter; the first recipe of CONTRIBUTING.md.

Run: python examples/custom_adapter.py

The family: tokens of overlapping patches behind four register tokens, which take part in the attention and not in the
mean. Nothing in the model declares how many there are. Its weights are random, which changes nothing about the layout.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camhook
from camhook import Adapter, Layout

SIZE = (48, 72)  # height, width
STRIDE = 8
REGISTERS = 4
CLASSES = ("cat", "dog", "bird")


class Block(nn.Module):
    """Self-attention and an MLP, each on a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape (B, N, C)."""
        query, key, value = self.qkv(self.norm1(tokens)).chunk(3, -1)
        tokens = tokens + self.out(F.scaled_dot_product_attention(query, key, value))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class RegisterNet(nn.Module):
    """Register tokens first, then patches row by row; the head reads the mean of the patches."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=12, stride=STRIDE, padding=2)  # overlapping
        self.registers = nn.Parameter(torch.randn(1, REGISTERS, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, len(CLASSES))

    def tokens(self, images: Tensor) -> Tensor:
        """Return registers and patches (B, 4 + N, C)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.registers.expand(len(images), -1, -1), patches), 1)
        normed: Tensor = self.norm(self.blocks(tokens))
        return normed

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits: Tensor = self.fc(self.tokens(images)[:, REGISTERS:].mean(1))
        return logits


# Which models the adapter is for, and which layouts their features may have, most likely first. The engine takes the
# first at which the logits are found, numerically, to be a sum over just these positions: a wrong number of registers
# is refused.
REGISTER_NET = Adapter(
    "register-net",
    layouts=lambda model, shape: [Layout("NLC", num_prefix_tokens=REGISTERS, patch_size=(STRIDE, STRIDE))],
    applies=lambda model: isinstance(model, RegisterNet),
)


@torch.no_grad()
def main() -> None:
    """Show what camhook says of the model before and after it knows the family."""
    torch.manual_seed(0)
    model = RegisterNet().eval()
    images = torch.randn(4, 3, *SIZE)

    print("Without an adapter:")
    try:
        camhook.wrap(model, input_size=SIZE)
    except camhook.UnsupportedModelError as error:
        first, *tried, advice = str(error).splitlines()
        print("\n".join([first, tried[0], f"  - ... and {len(tried) - 1} more", advice]), end="\n\n")

    camhook.register(REGISTER_NET)
    cam = camhook.wrap(model, input_size=SIZE, class_names=CLASSES)
    print(f"With one:\n{cam.describe()}\n")

    result = cam(images, "all")
    missed = (result.maps.mean((2, 3)) + result.offset - model(images)).abs().max()
    print(f"Mean of the maps plus offset misses the model's logits by {missed:.1e} at most.")

    # The order of positions is in none of these numbers, so compare with the maps written out for this family: what
    # each patch's token adds to a logit, row by row.
    evidence = model.tokens(images)[:, REGISTERS:] @ model.fc.weight.T
    expected = evidence.transpose(1, 2).unflatten(2, result.maps.shape[2:])
    print(f"The maps miss those written out by {(result.maps - expected).abs().max():.1e} at most.")


if __name__ == "__main__":
    main()

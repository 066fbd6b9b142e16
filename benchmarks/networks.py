"""The networks that are timed, with random weights and inputs of their natural size, in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A network and the inputs it takes.

    Args:
        name: what results call it.
        make: builds the network.
        inputs: n -> inputs of n samples.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]

    def build(self) -> nn.Module:
        """The network with the same random weights at every call, in eval mode."""
        torch.manual_seed(0)
        return self.make().eval()

    def batch(self, n: int) -> Tensor:
        """The same random inputs at every call."""
        torch.manual_seed(1)
        return self.inputs(n)


def mlp() -> nn.Module:
    """784-512-512-10, ReLU: 669,706 parameters."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def lenet() -> nn.Module:
    """Two 5x5 convolutions and two linear layers: 317,066 parameters with 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalization, and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out, inplace=True)


def resnet18() -> nn.Module:
    """ResNet-18 as for 32x32 images, widths 64 to 512: 11,173,962 parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    width = 64
    for n_out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(ResidualBlock(width, n_out, stride))
        width = n_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class ViT(nn.Module):
    """A small vision transformer: 4x4 patches of 32x32 images, width 192, 6 blocks: 2,693,578 parameters."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


class Encoder(nn.Module):
    """A transformer encoder over tokens, 6 layers of width 256 on 64 tokens, vocabulary 8,000: 6,805,514 parameters."""

    def __init__(self, vocabulary: int = 8000, width: int = 256, depth: int = 6, length: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        logits: Tensor = self.head(self.blocks(h).mean(dim=1))
        return logits


NETWORKS = {
    network.name: network
    for network in (
        Network("mlp", mlp, lambda n: torch.randn(n, 784)),
        Network("lenet", lenet, lambda n: torch.randn(n, 1, 28, 28)),
        Network("resnet18", resnet18, lambda n: torch.randn(n, 3, 32, 32)),
        Network("vit", ViT, lambda n: torch.randn(n, 3, 32, 32)),
        Network("encoder", Encoder, lambda n: torch.randint(0, 8000, (n, 64))),
    )
}

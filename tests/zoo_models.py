"""The tiny models of the zoo."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def no_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 1, bias=False), nn.Flatten(0))


def conv_zoo() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.PReLU(4),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=2, dilation=2),
        nn.PReLU(),
        nn.Conv2d(6, 4, (1, 3), padding="same", bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def conv_1d_3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, stride=2, padding=1, padding_mode="replicate"),
        nn.Tanh(),
        Lambda(lambda x: x.reshape(len(x), 2, 2, 2, -1)),
        nn.Conv3d(2, 3, (2, 1, 2), padding=(1, 0, 1)),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 2, 2, dilation=2, bias=False),
        Lambda(lambda x: x.mean((2, 3))),
    )


class BasicBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        BasicBlock(4),
        BasicBlock(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def norm_zoo() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.InstanceNorm2d(4, affine=True),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.Tanh(),
        Lambda(lambda x: x.flatten(2).transpose(1, 2)),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
        nn.RMSNorm(4),
        nn.Flatten(),
        nn.BatchNorm1d(144),
        nn.Linear(144, 2),
    )


class Transformer(nn.Module):
    """Class token, positional embedding, encoder layers."""

    def __init__(self, *, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(5, 6))
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        if not self.batch_first:
            return self.head(self.encoder(x.transpose(0, 1))[0])
        return self.head(self.encoder(x)[:, 0])


class TiedLanguageModel(nn.Module):
    """Causal attention, the embedding table is the output layer's weight too."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.decode = nn.Linear(width, vocabulary, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=x.dtype)
        x = self.norm(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])
        return self.decode(x)[:, -1, :4]


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.transformer = nn.Transformer(6, 2, 1, 1, 8, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        out = self.transformer(self.embed(source), self.embed(target), tgt_mask=mask)
        return self.head(out.mean(1))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))) * self.shared(x))


class BareParameters(nn.Module):
    """Parameters used by functions: einsum, scaling, slices, tables of biases, both sides of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.heads = nn.Parameter(torch.randn(2, 4, 3))
        self.scale = nn.Parameter(torch.randn(4))
        self.shift = nn.Parameter(torch.randn(()))
        self.table = nn.Parameter(torch.randn(7, 4))
        self.out = nn.Parameter(torch.randn(3, 8))
        self.vector = nn.Parameter(torch.randn(3))
        self.register_buffer("places", torch.tensor([3, 1, 1, 6]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("ntd,do->nto", x, self.weight) * self.scale + self.table[self.places]
        x = torch.tanh(x / (1 + self.scale**2)) - self.shift
        heads = torch.einsum("nto,hop->nhtp", x, self.heads).tanh().sum(2)
        picked = F.linear(heads.mean(1), self.out[:, :3]) + heads @ self.vector @ self.out[:2, 3:6]
        return picked + self.out[:, 3]


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_norm = parametrizations.weight_norm(nn.Linear(5, 6))
        self.spectral = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.orthogonal = parametrizations.orthogonal(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.orthogonal(torch.tanh(self.spectral(torch.tanh(self.weight_norm(x)))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.rnn = kind(6, 4, batch_first=batch_first, **options)
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.batch_first:
            return self.head(self.rnn(x.transpose(0, 1))[0][-1])
        return self.head(self.rnn(x)[0][:, -1])


class RoutedExperts(nn.Module):
    """Each position goes to its best expert, gathered by index."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6)
        gate, choice = self.router(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            mine = (choice == number).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(rows[mine]) * gate[mine, None])
        return self.head((rows + out).reshape(x.shape).mean(1))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.token_mix = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
        self.channel_mix = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.token_mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel_mix(self.norm(x))
        return self.head(x.mean(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.leaky_relu(self.down(x))
        deep = F.silu(self.middle(skip))
        return self.out(torch.cat([skip, self.up(deep)], dim=1))


class InvertedBottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.SiLU()
        )
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 3, 1), nn.SiLU(), nn.Conv2d(3, 12, 1))
        self.project = nn.Sequential(nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 0.3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(self.expand(x))
        y = self.project(y * self.squeeze(y).sigmoid())
        return self.head((x + self.gamma * y).mean((2, 3)))


class Windows(nn.Module):
    """Samples folded into rows together with windows, window first in one layer and sample first in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        x = torch.tanh(self.first(x.reshape(n * t, d)))
        x = x.reshape(n, t, d).transpose(0, 1).reshape(t * n, d)
        x = torch.tanh(self.second(x)).reshape(t, n, d)
        return self.head(x.mean(0))


class LowRank(nn.Module):
    """A LoRA layer at its start: B = 0, so that A has no gradient yet."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(5, 4)
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.zeros(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x) + x @ self.a.T @ self.b.T)


class SharedTable(nn.Module):
    """A layer that works on something all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.mlp, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.mlp(self.places)).mean(1))


class PositionTables(nn.Module):
    """Tables looked up with the same indices for every sample, beside one of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place, self.kind = nn.Embedding(11, 6), nn.Embedding(9, 6), nn.Embedding(2, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.register_buffer("places", torch.arange(9)[None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place(self.places[:, : x.shape[1]]) + self.kind(torch.zeros_like(x))
        return self.head(torch.tanh(self.norm(x)).mean(1))


class RelativePositions(nn.Module):
    """Attention biases made of a table and of a small network, both of positions alone, used in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 2))
        self.mlp = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.register_buffer("corners", torch.randn(8, 2))
        self.register_buffer("pairs", torch.arange(4)[:, None] - torch.arange(4) + 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        table = self.table + 2 * torch.sigmoid(self.mlp(self.corners))
        bias = table[self.pairs.flatten()].view(t, t, 2).permute(2, 0, 1).contiguous()
        for _ in range(2):
            q, k, v = self.qkv(x).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
            mixed = torch.softmax(q @ k.transpose(-1, -2) + bias.unsqueeze(0), dim=-1) @ v
            x = x + mixed.transpose(1, 2).reshape(n, t, d)
        return self.head(x.mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.meet = nn.Linear(5, 4), nn.Linear(6, 4), nn.Bilinear(4, 4, 2)

    def forward(self, left: Tensor, right: Tensor, *, scale: float = 2.0) -> Tensor:
        return self.meet(torch.tanh(self.left(left)), torch.tanh(self.right(right))) * scale


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.body.requires_grad_(False)
        self.body[2].weight.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class PackedOutput(nn.Module):
    """Returns a mapping with logits, takes keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6, padding_idx=0), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask[..., None].to(self.head.weight)
        x = torch.tanh(self.embed(input_ids)) * mask
        return {"hidden": x, "logits": self.head(x.sum(1) / math.sqrt(5))}

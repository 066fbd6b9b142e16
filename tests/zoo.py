"""Tiny models of every kind, with inputs: the laws of the engine are tested on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo_models import (
    BareParameters,
    CalledTwice,
    EncoderDecoder,
    Frozen,
    InvertedBottleneck,
    LowRank,
    Mixer,
    PackedOutput,
    Parametrized,
    PositionTables,
    Recurrent,
    RelativePositions,
    RoutedExperts,
    SharedTable,
    TiedLanguageModel,
    Transformer,
    TwoInputs,
    UNet,
    Windows,
    conv_1d_3d,
    conv_zoo,
    mlp,
    no_bias,
    norm_zoo,
    resnet,
    transposed,
)


@dataclass(frozen=True)
class Case:
    """A model and two batches for it.

    `is_generic`: some parameters are expected to take a generic path. `outputs`: output functions that make sense.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    is_generic: bool = False
    outputs: tuple[Any, ...] = ("logits",)
    notes: dict[str, Any] = field(default_factory=dict)

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(1)
        model = self.make().eval()
        with torch.no_grad():  # lazy layers take their size
            call(model, self.inputs(2))
        model.to(dtype)
        with torch.no_grad():  # running statistics and gains that are not 0 and 1
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
                    for parameter in module.parameters():
                        parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return model

    def batch(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Any:
        torch.manual_seed(seed)
        return to_dtype(self.inputs(n), dtype)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def to_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: to_dtype(value, dtype) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(to_dtype(value, dtype) for value in inputs)
    return inputs


def images(channels: int = 3, size: int = 8) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, channels, size, size)


def vectors(width: int = 5) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, width)


def sequences(length: int = 4, width: int = 6) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, length, width)


def tokens(length: int = 5, vocabulary: int = 11) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, vocabulary, (n, length))


def packed_inputs(n: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 11, (n, 5)), "attention_mask": (torch.rand(n, 5) < 0.8).long()}


ZOO: tuple[Case, ...] = (
    Case(
        "mlp",
        mlp,
        vectors(),
        outputs=("logits", "centered_logits", "log_probs", "fisher", "one_vs_rest", "adversary_pair"),
    ),
    Case("no bias", no_bias, vectors()),
    Case("convolutions", conv_zoo, images(), outputs=("logits", "one_vs_rest")),
    Case("convolutions 1d 3d", conv_1d_3d, lambda n: torch.randn(n, 3, 10)),
    Case("transposed convolutions", transposed, images()),
    Case("residual", resnet, images(), outputs=("logits", "log_probs")),
    Case("norms", norm_zoo, images()),
    Case("transformer", Transformer, sequences(), outputs=("logits", "one_vs_rest")),
    Case("transformer, time first", lambda: Transformer(batch_first=False, norm_first=True), sequences()),
    Case("tied language model", TiedLanguageModel, tokens()),
    Case("encoder and decoder", EncoderDecoder, lambda n: (tokens(4)(n), tokens(3)(n))),
    Case("called twice", CalledTwice, vectors()),
    Case("bare parameters", BareParameters, sequences()),
    Case("parametrized", Parametrized, vectors()),
    Case("position tables", PositionTables, tokens()),
    Case("relative positions", RelativePositions, sequences(width=4)),
    Case("lstm", lambda: Recurrent(nn.LSTM, batch_first=True, num_layers=2), sequences()),
    Case("gru, time first, both ways", lambda: Recurrent(nn.GRU, batch_first=False, bidirectional=True), sequences()),
    Case("routed experts", RoutedExperts, sequences(), is_generic=True),
    Case("mixer", Mixer, images()),
    Case("u-net, pooled", UNet, images(), outputs=("pooled",)),
    Case("inverted bottleneck", InvertedBottleneck, images()),
    Case("windows", Windows, sequences()),
    Case("low rank", LowRank, vectors()),
    Case("shared table", SharedTable, sequences()),
    Case("two inputs", TwoInputs, lambda n: (torch.randn(n, 5), torch.randn(n, 6)), is_generic=True),
    Case("frozen half", Frozen, vectors()),
    Case("keywords and padding", PackedOutput, packed_inputs),
)

"""Arguments that make no sense: refused alike by all that is public, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kinsight
from kinsight.errors import InputError, SampleTypeError, UnknownNameError
from kinsight.explorer.report import write_report
from kinsight.samples import Samples
from tests.indexes import data, network

pytestmark = pytest.mark.usefixtures("without_type_checks")

Ask = Callable[..., Any]

ASKED: dict[str, Ask] = {
    "neighbors": lambda kernel, **how: kinsight.neighbors(kernel, data(9), data(9), **how),
    "soft_count": lambda kernel, **how: kinsight.soft_count(kernel, data(9), **how),
    "hard_count": lambda kernel, **how: kinsight.hard_count(kernel, data(9), **how),
    "power_count": lambda kernel, **how: kinsight.power_count(kernel, data(9), **how),
    "label_suspects": lambda kernel, **how: kinsight.label_suspects(kernel, data(9), **how),
    "label_conflicts": lambda kernel, **how: kinsight.label_conflicts(kernel, data(9), **how),
    "fit_map": lambda kernel, **how: kinsight.fit_map(kernel, data(9), **how),
    "sketch": lambda kernel, **how: kinsight.sketch(kernel, torch.randn(3, 6), 64, **how),
}
"""What is asked of a kernel and takes a normalization."""

OTHERS: dict[str, Ask] = {
    "uncertainty": lambda kernel: kinsight.uncertainty(kernel, data(9)),
    "signed_support": lambda kernel: kinsight.signed_support(kernel, data(9)),
    "averages": lambda kernel: kinsight.averages(kernel, data(9)),
    "denoise": lambda kernel: kinsight.denoise(kernel, Samples(torch.randn(9, 6), torch.randn(9, 1))),
    "plan": lambda kernel: kinsight.plan(kernel, data(9)),
    "report": lambda kernel: write_report("report.html", kernel, data(9)),
    "index": lambda kernel: kinsight.Index.build("never", kernel, data(9)),
}


def kernel() -> kinsight.GradientKernel:
    """Of one output, where both normalizations are one."""
    return kinsight.GradientKernel(network(n_outputs=1))


@pytest.mark.parametrize("name", [*ASKED, *OTHERS])
def test_a_model_is_no_kernel(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SampleTypeError, match=r"kernel is a Sequential.*GradientKernel"):
        (ASKED | OTHERS)[name](network())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ASKED)
def test_a_similarity_that_there_is_not(name: str) -> None:
    with pytest.raises(UnknownNameError, match="normalization 'cosine' is unknown: use 'whitened' or 'flat'"):
        ASKED[name](kernel(), normalization="cosine")


def test_nothing_is_built_or_compared_by_a_similarity_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="normalization 'cosine' is unknown"):
        kinsight.Index.build(tmp_path / "index", kernel(), data(9), normalization="cosine")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="normalization 'cosine' is unknown"):
        next(kernel().similarity_blocks(data(9), None, "cosine"))  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="normalization 'cosine' is unknown"):
        kinsight.compare({"a": kernel(), "b": kernel()}, data(9), normalization="cosine")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3", float("nan"), torch.tensor(2.5), np.array([1, 2]), None])
def test_counts_are_whole_numbers(count: Any, tmp_path: Path) -> None:
    index = kinsight.Index.build(tmp_path, kernel(), data(9), dim=64)
    for ask in (
        lambda: kinsight.neighbors(kernel(), data(9), data(9), count),
        lambda: kinsight.compare({"a": kernel(), "b": kernel()}, data(9), n_neighbors=count),
        lambda: index.neighbors(ids=[1], n_neighbors=count),
        lambda: index.build_neighbors(count),
        lambda: kinsight.GradientKernel(network(), max_bytes=count),
        lambda: kinsight.GradientKernel(network(), max_outputs=count),
    ):
        with pytest.raises(InputError, match="it has to be a whole number, 1 or more"):
            ask()
    values = Samples(torch.randn(9, 6), torch.randn(9, 1))
    for ask, least in (
        (lambda: kinsight.denoise(kernel(), values, n_probes=count), 2),
        (lambda: kinsight.compare({"a": kernel(), "b": kernel()}, data(9), n_neighbors=1, n_bootstrap=count), 2),
        (lambda: kinsight.compare({"a": kernel(), "b": kernel()}, data(9), n_neighbors=1, n_anchors=count), 4),
    ):
        with pytest.raises(InputError, match=f"it has to be a whole number, {least} or more"):
            ask()


@pytest.mark.parametrize("count", [-1, 2.5, True, "3", torch.tensor(2.5)])
def test_counts_that_may_be_none(count: Any) -> None:
    for name in ("n_suspects", "n_supporters"):
        with pytest.raises(InputError, match=f"{name} is .*: it has to be a whole number, 0 or more"):
            kinsight.label_suspects(kernel(), data(9), **{name: count})
    with pytest.raises(InputError, match=r"batch_size is .*: it has to be a whole number, 1 or more"):
        kinsight.GradientKernel(network(), batch_size=count)


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    for count in (np.int64(2), torch.tensor(2)):
        assert kinsight.neighbors(kernel(), data(9), data(9), count).positions.shape == (9, 2)


@pytest.mark.parametrize("kernels", [None, network(), 3])
def test_what_is_no_collection_of_kernels_is_not_compared(kernels: Any) -> None:
    with pytest.raises(SampleTypeError, match="pass networks by name"):
        kinsight.compare(kernels, data(9), n_neighbors=3)
    with pytest.raises(SampleTypeError, match=r"kernel is a .*GradientKernel"):
        kinsight.compare({"a": network(), "b": network()}, data(9), n_neighbors=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": "sometimes"}, "check 'sometimes' is unknown: use 'first', 'always', 'never'"),
        ({"contraction": "half"}, "contraction 'half' is unknown"),
    ],
)
def test_names_of_a_kernel_that_there_are_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        kinsight.GradientKernel(nn.Linear(2, 1), **options)


@pytest.mark.parametrize("thresholds", ["a", ["a"], [[0.5]], [], float("nan"), None])
def test_thresholds_are_numbers(thresholds: Any) -> None:
    with pytest.raises(InputError, match=r"[Tt]hreshold"):
        kinsight.hard_count(kernel(), data(9), thresholds=thresholds)


@pytest.mark.parametrize("power", ["a", 0, -1.0, float("nan"), None])
def test_powers_are_positive(power: Any) -> None:
    for ask in (kinsight.power_count, kinsight.fit_map, kinsight.label_suspects):
        with pytest.raises(InputError, match="it must be positive"):
            ask(kernel(), data(9), power=power)


def test_methods_and_weightings_that_there_are_not() -> None:
    values = Samples(torch.randn(9, 6), torch.randn(9, 1))
    with pytest.raises(UnknownNameError, match="weighting 'cosine' is unknown"):
        kinsight.averages(kernel(), values, weighting="cosine")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="method 'fast' is unknown"):
        kinsight.denoise(kernel(), values, method="fast")  # type: ignore[arg-type]

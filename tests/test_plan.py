"""A plan counts what then happens; its bytes are those of tensors that are alive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight.kernel import GradientKernel
from kinsight.live import peak_bytes
from kinsight.plan import Line
from kinsight.samples import Samples

SAMPLES, QUERIES = 23, 9


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 25, 40), nn.Tanh(), nn.Linear(40, 1)
    )


def images(n: int) -> Tensor:
    return torch.randn(n, 1, 7, 7)


def passes(kernel: GradientKernel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the kernel differentiates from now on."""
    seen: list[int] = []
    outputs = kernel._differentiate._outputs

    def counted(batch: Any) -> Any:
        seen.append(len(batch))
        return outputs(batch)

    monkeypatch.setattr(kernel._differentiate, "_outputs", counted)
    return seen


ASKED: dict[str, Callable[[GradientKernel, Samples, Samples | None], Any]] = {
    "gram": lambda kernel, data, queries: (
        kernel(queries.take(range(QUERIES)) if queries else data.take(range(SAMPLES)))
        if queries is None
        else kernel(queries.take(range(QUERIES)), data.take(range(SAMPLES)))
    ),
    "similarity": lambda kernel, data, queries: kinsight.neighbors(kernel, queries or data, data, normalization="flat"),
    "soft_count": lambda kernel, data, queries: kinsight.soft_count(kernel, data, queries),
}


@pytest.mark.parametrize("has_queries", [False, True], ids=["own", "queries"])
@pytest.mark.parametrize("max_bytes", [40_000, 200_000, 2**30])
@pytest.mark.parametrize("question", list(ASKED))
def test_passes_are_those_that_happen(
    question: Any, max_bytes: int, has_queries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = GradientKernel(model(), max_bytes=max_bytes)
    data, queries = Samples(images(SAMPLES)), Samples(images(QUERIES), ids=list("abcdefghi")) if has_queries else None
    plan = kinsight.plan(kernel, data, queries, question=question)
    assert plan.batch_size == kernel.block_size(data)
    seen = passes(kernel, monkeypatch)
    ASKED[question](kernel, data, queries)
    assert len(seen) == plan.n_passes
    assert plan.seconds > 0
    assert plan.peak_bytes > 0


@pytest.mark.parametrize("max_bytes", [60_000, 500_000, 2_000_000])
def test_passes_where_built_gradients_do_not_fit(max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1))
    kernel = GradientKernel(network, lambda returned: returned.mean(1), max_bytes=max_bytes)
    x = torch.randn(30, 16, 32)
    plan = kinsight.plan(kernel, x, question="similarity")
    seen = passes(kernel, monkeypatch)
    kinsight.neighbors(kernel, x, x, normalization="flat")
    assert len(seen) == plan.n_passes


def test_queries_have_batches_of_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = GradientKernel(model(), max_bytes=100_000)
    data, queries = Samples(images(6)), Samples(images(60))
    for question, ask in ASKED.items():
        plan = kinsight.plan(kernel, data, queries, question=question)  # type: ignore[arg-type]
        seen = passes(kernel, monkeypatch)
        if question != "gram":
            ask(kernel, data, queries)
            assert len(seen) == plan.n_passes, question


def test_live_bytes_are_counted_until_they_are_freed() -> None:
    x = torch.ones(1000)
    with peak_bytes(torch.device("cpu"), [x]) as peak:
        y = x + 1
        z = y * 2
        del y
        w = z + x.view(10, 100).flatten()  # a view of what was there before is nothing new
        del z, w
        x * 3
    assert peak[0] == 2 * 4000


def test_saved_tensors_are_alive_until_their_graph_is_gone() -> None:
    x = torch.ones(1000, requires_grad=True)
    with peak_bytes(torch.device("cpu"), [x]) as peak:
        y = (x.exp().sin() * 2).sum()
        y.backward()
    assert 3 * 4000 <= peak[0] <= 6 * 4000


def test_lines_go_through_the_last_two_points() -> None:
    line = Line([(4, 9.0), (8, 10.0), (16, 14.0)])
    assert line(32) == 14 + 16 * 0.5
    assert line(8) == 7  # within what was measured: its share
    assert Line([(4, 2.0)])(40) == 20
    assert Line([(4, 2.0), (8, 1.0)])(80) == 1  # noise: never falls


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_questions_are_refused() -> None:
    with pytest.raises(kinsight.errors.UnknownNameError, match="question 'density' is unknown: use 'gram'"):
        kinsight.plan(GradientKernel(model()), images(4), question="density")  # type: ignore[arg-type]


def test_an_index_is_planned_as_it_is_then_built(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kernel = kinsight.GradientKernel(
        torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3))
    )
    data = torch.randn(500, 20)
    found = kinsight.plan(kernel, data, question="index", error=0.05)
    index = kinsight.Index.build(tmp_path, kernel, data, error=0.05, previews=False)
    assert found.dim == index.dim
    assert (found.n, found.m, found.n_groups) == (500, 0, 1)
    assert 0.7 < found.result_bytes / index.info()["bytes"] < 1.2
    assert found.peak_bytes > 0
    assert found.seconds > 0
    assert kinsight.plan(kernel, data, question="index", dim=128).dim == 128
    assert kinsight.plan(kernel, data).dim == 0

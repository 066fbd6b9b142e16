"""How networks agree: correlations, shared neighbors and alignments by hand; intervals that cover; from when on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from kinsight import GradientKernel, Samples, neighbors, soft_count
from kinsight.agreement import Bootstrap, alignments, pearson, ranked, shared
from kinsight.errors import IndexExistsError, InputError, ZeroGradientWarning
from kinsight.explorer import trajectory, write_trajectory
from kinsight.stability import Stability, compare

N = 80


def inputs() -> Tensor:
    return torch.randn(N, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2)).double()


def nudged(scale: float) -> GradientKernel:
    """The same network, its weights moved by so much."""
    model = network()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return GradientKernel(model)


@pytest.fixture(scope="module")
def found() -> Stability:
    kernels = {"start": nudged(3.0), "later": nudged(0.02), "end": nudged(0.0)}
    return compare(kernels, inputs(), k=5, n_anchors=N, n_bootstrap=200)


def test_by_hand(found: Stability) -> None:
    x, kernels = inputs(), [nudged(3.0), nudged(0.02), nudged(0.0)]
    samples = Samples(x)
    nearest = [neighbors(kernel, samples, samples, 5, normalization="flat").positions for kernel in kernels]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        common = [
            len(set(a) & set(b)) / 5 for a, b in zip(nearest[i].tolist(), nearest[j].tolist(), strict=True)
        ]  # fmt: skip
        assert float(found.neighbors.values[i, j]) == pytest.approx(sum(common) / N)
    counts = [soft_count(kernel, x, normalization="flat").values for kernel in kernels]
    by_rank = [each.argsort().argsort().double() for each in counts]
    wanted = torch.corrcoef(torch.stack(by_rank))
    torch.testing.assert_close(found.counts.values, wanted)
    spread = (torch.stack(by_rank) / (N - 1)).std(dim=0, correction=0)
    torch.testing.assert_close(found.volatility, spread)
    center = torch.eye(N).double() - 1 / N
    grams = [center @ kernel.flat_similarity(x) @ center for kernel in kernels]
    aligned = float((grams[0] * grams[2]).sum() / (grams[0].norm() * grams[2].norm()))
    assert float(found.alignments.values[0, 2]) == pytest.approx(aligned)


def test_who_agrees_with_whom(found: Stability) -> None:
    for name in ("counts", "similarities", "neighbors", "alignments"):
        agreement = getattr(found, name)
        torch.testing.assert_close(agreement.values.diagonal(), torch.ones(3, dtype=torch.float64))
        assert float(agreement.values[1, 2]) > 0.9 > float(agreement.values[0, 2])
        inside = (agreement.low <= agreement.values + 1e-9) & (agreement.values <= agreement.high + 1e-9)
        assert bool(inside.all()) or name == "alignments"  # samples drawn twice are alike: a little higher
    assert found.trusted_from == "later"
    assert "at least 50% of the 5 nearest neighbors" in found.rule
    record = list(found.pairs())[2]
    assert (record["first"], record["second"]) == ("later", "end")
    assert record["neighbors_interval"][0] <= record["neighbors"] <= record["neighbors_interval"][1]


def test_nothing_is_trusted_where_the_last_alone_agrees_with_itself() -> None:
    kernels = {str(seed): GradientKernel(network(seed)) for seed in range(3)}
    assert compare(kernels, inputs(), k=3, n_bootstrap=50, least=0.95).trusted_from is None


def test_networks_come_one_by_one() -> None:
    alive = []

    def one_by_one() -> Iterator[tuple[str, GradientKernel]]:
        for seed in range(3):
            alive.append(seed)
            yield str(seed), GradientKernel(network(seed))

    found = compare(one_by_one(), inputs(), k=3, n_anchors=20, n_others=40, n_bootstrap=20)
    assert alive == [0, 1, 2]
    assert (found.names, found.n_anchors) == (("0", "1", "2"), 20)


def test_samples_without_gradient_are_left_out() -> None:
    x = inputs()
    x[7] = 0
    kernels = {str(seed): GradientKernel(nn.Linear(5, 1, bias=False).double()) for seed in range(2)}
    with pytest.warns(ZeroGradientWarning):
        found = compare(kernels, x, k=3, n_anchors=N, n_bootstrap=20)
    assert found.n_anchors == N - 1
    assert found.volatility.isnan().nonzero().flatten().tolist() == [7]
    assert not bool(found.counts.values.isnan().any())


def test_intervals_cover() -> None:
    """A correlation of 0.6, from samples of 60: the interval holds it about as often as it says."""
    generator, hits, truth = torch.Generator().manual_seed(0), 0, 0.6
    for _ in range(100):
        a = torch.randn(60, generator=generator, dtype=torch.float64)
        b = truth * a + (1 - truth**2) ** 0.5 * torch.randn(60, generator=generator, dtype=torch.float64)
        found = Bootstrap(200, generator).correlations(torch.stack([a, b]))
        hits += int(found.low[0, 1] <= truth <= found.high[0, 1])
    assert 85 <= hits <= 100


def test_ranks_and_correlations() -> None:
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert ranked(values).tolist() == [[2.5, 0.0, 2.5, 1.0], [1.5, 1.5, 1.5, 1.5]]
    a, b = torch.randn(3, 50).double(), torch.randn(3, 50).double()
    wanted = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(a, b, strict=True)]
    assert pearson(a, b).tolist() == pytest.approx(wanted)
    assert shared(torch.tensor([[1, 2, 3]]), torch.tensor([[3, 9, 1]])).tolist() == pytest.approx([2 / 3])
    matrix = torch.randn(10, 10).double()
    assert float(alignments(torch.stack([matrix, 3 * matrix + 5]))[0, 1]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kernels", "options", "message"),
    [
        (1, {}, "pass at least two"),
        (2, {"k": N}, "ask for 1 to one less"),
        (2, {"k": 0}, "ask for 1 to one less"),
        (2, {"n_bootstrap": 1}, "at least 2 of each"),
    ],
)
def test_questions_that_make_no_sense(kernels: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare({str(seed): GradientKernel(network(seed)) for seed in range(kernels)}, inputs(), **options)
    same = (("a", GradientKernel(network())) for _ in range(2))
    with pytest.raises(InputError, match="of different names"):
        compare(same, inputs())


def test_the_figure_shows_every_network(found: Stability, tmp_path: Path) -> None:
    hostile = replace(found, names=("<script>alert(1)</script>", 'a"b&c', "end"))
    for stability in (found, hostile):
        figure = trajectory(stability)
        root = ElementTree.fromstring(figure)
        circles = [each for each in root.iter() if each.tag.endswith("circle")]
        assert len(circles) == 4 * 2  # four measures of two networks against the last one
        titles = [float(each[0].text or "nan") for each in circles]
        assert titles[:2] == pytest.approx(found.neighbors.values[:2, 2].tolist(), abs=1e-3)
        heights = [float(each.attrib["cy"]) for each in circles[:2]]
        assert (heights[0] > heights[1]) == (titles[0] < titles[1])
        assert "<script" not in figure
        assert "".join(root.itertext()).count("neighbors stay") == (stability.trusted_from is not None)
    path = write_trajectory(tmp_path / "run.svg", found)
    assert path.read_text() == trajectory(found)
    with pytest.raises(IndexExistsError, match="overwrite=True"):
        write_trajectory(path, found)
    assert write_trajectory(path, found, overwrite=True) == path
    with pytest.raises(InputError, match=r"\.svg file"):
        write_trajectory(tmp_path / "run.png", found)
    two = compare({"a": nudged(0.1), "b": nudged(0.0)}, inputs(), k=5, n_anchors=20, n_bootstrap=10)
    with pytest.raises(InputError, match="at least three networks, and there are 2"):
        trajectory(two)

"""How networks agree: correlations, shared neighbors and alignments by hand; intervals that cover; from when on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from kinsight import GradientKernel, Samples, neighbors, soft_count
from kinsight.agreement import Agreement, Bootstrap, nearest, pearson, ranked, shared
from kinsight.errors import IndexExistsError, InputError, ZeroGradientWarning
from kinsight.explorer import trajectory, write_trajectory
from kinsight.live import peak_bytes
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
    return compare(kernels, inputs(), n_neighbors=5, n_anchors=N, n_bootstrap=200)


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
    first, last = (kernels[place].flat_similarity(x) for place in (0, 2))
    correlations = []
    for row in range(N):  # of every sample's similarities to all others, by rank
        others = torch.arange(N) != row
        both = torch.stack([each[row, others].argsort().argsort().double() for each in (first, last)])
        correlations.append(float(torch.corrcoef(both)[0, 1]))
    assert float(found.similarities.values[0, 2]) == pytest.approx(sum(correlations) / N, abs=1e-4)  # but for ties
    aligned = unbiased(first, last) / (unbiased(first, first) * unbiased(last, last)) ** 0.5
    assert float(found.alignments.values[0, 2]) == pytest.approx(aligned, abs=1e-6)


def unbiased(first: Tensor, second: Tensor) -> float:
    """Song et al. (2012), equation 5: the unbiased estimate of the inner product of centered kernels."""
    n = len(first)
    a, b = (each - each.diag().diag() for each in (first, second))
    products = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()
    return float(products / (n * (n - 3)))


def test_who_agrees_with_whom(found: Stability) -> None:
    for name in ("counts", "similarities", "neighbors", "alignments"):
        agreement = getattr(found, name)
        torch.testing.assert_close(agreement.values.diagonal(), torch.ones(3, dtype=torch.float64))
        assert float(agreement.values[1, 2]) > 0.9 > float(agreement.values[0, 2])
        inside = (agreement.low <= agreement.values + 1e-9) & (agreement.values <= agreement.high + 1e-9)
        assert bool(inside.all())
    assert found.trusted_from == "later"
    assert "at least 50% of the 5 nearest neighbors among 80 samples" in found.rule
    low, high = found.mean_volatility_interval
    assert low < found.mean_volatility < high
    assert found.mean_volatility == pytest.approx(float(found.volatility.mean()))
    assert f"varies by {found.mean_volatility:.1%} of the data" in found.summary()
    record = list(found.pairs())[2]
    assert (record["first"], record["second"]) == ("later", "end")
    assert record["neighbors_interval"][0] <= record["neighbors"] <= record["neighbors_interval"][1]


@pytest.mark.parametrize(
    ("low", "first"),
    [
        ([[1, 0.6, 0.6], [0.6, 1, 0.6], [0.6, 0.6, 1]], "start"),
        ([[1, 0.6, 0.6], [0.6, 1, 0.4], [0.6, 0.4, 1]], None),  # the first agrees with each, and they do not
        ([[1, 0.6, 0.4], [0.6, 1, 0.6], [0.4, 0.6, 1]], "later"),  # agreeing with the next is not enough
        ([[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]], "start"),  # at least
    ],
)
def test_from_when_on(found: Stability, low: list[list[float]], first: str | None) -> None:
    """The lower ends decide, whatever the values are; of all pairs from there on."""
    ends = torch.tensor(low)
    changed = replace(found, neighbors=Agreement(torch.ones(3, 3), ends, torch.ones(3, 3)), least=0.5)
    assert changed.trusted_from == first


def test_nothing_is_trusted_where_the_last_alone_agrees_with_itself() -> None:
    kernels = {str(seed): GradientKernel(network(seed)) for seed in range(3)}
    assert compare(kernels, inputs(), n_neighbors=3, n_bootstrap=50, least=0.95).trusted_from is None


def test_networks_come_one_by_one() -> None:
    alive = []

    def one_by_one() -> Iterator[tuple[str, GradientKernel]]:
        for seed in range(3):
            alive.append(seed)
            yield str(seed), GradientKernel(network(seed))

    found = compare(one_by_one(), inputs(), n_neighbors=3, n_anchors=20, n_others=40, n_bootstrap=20)
    assert alive == [0, 1, 2]
    assert (found.names, found.n_anchors, found.n_others) == (("0", "1", "2"), 20, 40)
    assert "among 40 samples" in found.summary()


def without_bias(seed: int) -> GradientKernel:
    torch.manual_seed(seed)
    layers = nn.Linear(5, 12, bias=False), nn.Tanh(), nn.Linear(12, 1, bias=False)
    return GradientKernel(nn.Sequential(*layers).double())


def dead() -> GradientKernel:
    """A network whose hidden units are never active: no parameter has a gradient."""
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)  # type: ignore[union-attr, operator]
    return GradientKernel(model)


def test_samples_without_gradient_are_left_out() -> None:
    """Half of the inputs are 0, where networks without biases have no gradient: as if those were not there."""
    x, is_zero = inputs(), torch.arange(N) % 2 == 1
    x[is_zero] = 0
    kernels = {str(seed): without_bias(seed) for seed in (0, 5)}
    with pytest.warns(ZeroGradientWarning):
        found = compare(kernels, x, n_neighbors=3, n_anchors=N, n_bootstrap=20)
    expected = compare(kernels, x[~is_zero], n_neighbors=3, n_anchors=N, n_bootstrap=20)
    assert (found.n_anchors, found.n_others) == (N // 2, N // 2)
    assert torch.equal(found.volatility.isnan(), is_zero)
    for name in ("counts", "similarities", "neighbors", "alignments"):
        torch.testing.assert_close(getattr(found, name).values, getattr(expected, name).values)


def test_too_few_samples_with_gradients() -> None:
    x = inputs()
    x[4:] = 0
    with (
        pytest.warns(ZeroGradientWarning),
        pytest.raises(InputError, match=r"4 have a gradient in every network.*76 of"),
    ):
        compare({str(seed): without_bias(seed) for seed in range(2)}, x)
    with (
        pytest.warns(ZeroGradientWarning),
        pytest.raises(InputError, match="Without a gradient is 'dead' for 80 of 80"),
    ):
        compare({"alive": nudged(0.0), "dead": dead()}, inputs())


def test_ties_are_no_agreement() -> None:
    """f = w x over positive numbers: every similarity is 1, but for rounding, in every network."""
    x = torch.rand(N, 1).double() + 0.1
    kernels = {str(seed): GradientKernel(nn.Linear(1, 1, bias=False).double()) for seed in range(3)}
    found = compare(kernels, x, n_neighbors=4, n_bootstrap=20)
    torch.testing.assert_close(found.neighbors.values, torch.full((3, 3), 4 / (N - 1)).double())
    for agreement in (found.counts, found.similarities, found.alignments):
        assert bool(agreement.values.isnan().all())
    assert found.trusted_from is None
    assert "no rank correlation" in found.summary()


def covered(measure: str, truth: float, draw: Callable[[], Any], n: int = 100) -> int:
    """In how many of n draws of samples the interval holds the truth."""
    generator, hits, place = torch.Generator().manual_seed(0), 0, 0 if measure == "volatility" else 1
    for _ in range(n):
        found = getattr(Bootstrap(200, generator), measure)(*draw())
        hits += int(found.low.flatten()[place] <= truth <= found.high.flatten()[place])
    return hits


def test_intervals_of_correlations_cover() -> None:
    """A correlation of 0.6, from samples of 60: the interval holds it about as often as it says."""
    generator, truth = torch.Generator().manual_seed(0), 0.6

    def draw() -> tuple[Tensor]:
        a, b = torch.randn(2, 60, generator=generator, dtype=torch.float64)
        return (torch.stack([a, truth * a + (1 - truth**2) ** 0.5 * b]),)

    assert 90 <= covered("correlations", truth, draw) <= 100


@pytest.mark.parametrize(("d", "share"), [(5, 0.5), (30, 0.0), (30, 0.9)])
def test_intervals_of_alignments_cover(d: int, share: float) -> None:
    """Cosines of features that two networks share in part: from 50 anchors, intervals hold the alignment of 2,500."""
    generator = torch.Generator().manual_seed(d)
    x, other = torch.randn(2, 2500, d, generator=generator, dtype=torch.float64)
    seen = [torch.nn.functional.normalize(torch.tanh(each), dim=1) for each in (x, share * x + (1 - share) * other)]
    matrices = torch.stack([each @ each.T for each in seen])
    truth = float(Bootstrap(2, generator).alignments(matrices).values[0, 1])

    def draw() -> tuple[Tensor]:
        chosen = torch.randperm(2500, generator=generator)[:50]
        return (matrices[:, chosen][:, :, chosen],)

    assert 90 <= covered("alignments", truth, draw) <= 100


def test_intervals_of_means_cover() -> None:
    """Shares of neighbors in common among 300 others: from 50 anchors, intervals hold the mean over 2,500."""
    generator = torch.Generator().manual_seed(0)
    one, noise = torch.randn(2, 2500, 300, generator=generator, dtype=torch.float64)
    chances = [nearest(each, 5) for each in (one, one + 0.5 * noise)]
    truth = float(shared(*chances).mean())

    def draw() -> tuple[Any, ...]:
        chosen = torch.randperm(2500, generator=generator)[:50]
        return [each[chosen] for each in chances], shared

    assert 90 <= covered("means", truth, draw) <= 100


def test_intervals_of_volatility_cover() -> None:
    """Four networks that see the same but for noise, from 60 samples: ranks among those drawn, not among all 60."""
    generator = torch.Generator().manual_seed(0)

    def values(n: int) -> tuple[Tensor]:
        same = torch.randn(n, generator=generator, dtype=torch.float64)
        return (ranked(same + 0.5 * torch.randn(4, n, generator=generator, dtype=torch.float64)),)

    truth = float(Bootstrap(2, generator).volatility(*values(100_000)).values)
    assert 90 <= covered("volatility", truth, lambda: values(60)) <= 100


def test_intervals_of_many_networks_fit_in_memory() -> None:
    ranks = torch.randn(40, 5000, dtype=torch.float64)
    with peak_bytes(ranks.device, [ranks]) as found:
        Bootstrap(3, torch.Generator()).correlations(ranks)
    assert found[0] < 6 * ranks.nbytes  # products of all pairs would be 20 times the ranks


def test_ranks_and_correlations() -> None:
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert ranked(values).tolist() == [[2.5, 0.0, 2.5, 1.0], [1.5, 1.5, 1.5, 1.5]]
    a, b = torch.randn(3, 50).double(), torch.randn(3, 50).double()
    wanted = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(a, b, strict=True)]
    assert pearson(a, b).tolist() == pytest.approx(wanted)
    seen = torch.tensor([[5.0, 4, 3, 2, 1], [5, 5, 3, 3, 3], [1, 1, 1, 1, 1]])
    chances = nearest(seen, 3)
    assert chances.tolist() == [[1, 1, 1, 0, 0], pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 3]), pytest.approx([0.6] * 5)]
    assert shared(chances, chances.roll(1, 0)).tolist() == pytest.approx([0.6, 7 / 9, 0.6])
    matrix = torch.randn(10, 10).double()
    matrix = matrix + matrix.T
    same = Bootstrap(20, torch.Generator()).alignments(torch.stack([matrix, 3 * matrix + 5 + torch.eye(10)]))
    torch.testing.assert_close(torch.stack([same.values, same.low, same.high]), torch.ones(3, 2, 2).double())


def test_an_anchor_that_tells_nothing_does_not_count() -> None:
    """One is as similar to all others: the mean is that of the rest."""
    one, other = torch.randn(2, 6, 20).double()
    one[2] = 0
    found = Bootstrap(50, torch.Generator()).means([one, other], pearson)
    rest = torch.arange(6) != 2
    assert float(found.values[0, 1]) == pytest.approx(float(pearson(one[rest], other[rest]).mean()))
    assert bool(found.low.isfinite().all())


@pytest.mark.parametrize(
    ("kernels", "options", "message"),
    [
        (1, {}, "pass at least two"),
        (2, {"n_neighbors": N}, "one of which is the sample itself: ask for fewer"),
        (2, {"n_neighbors": 0}, "n_neighbors is 0: it has to be a whole number"),
        (2, {"n_others": -1}, "n_others is -1: it has to be a whole number"),
        (2, {"n_bootstrap": 1}, "n_bootstrap is 1: it has to be a whole number, 2 or more"),
        (2, {"n_anchors": 3}, "n_anchors is 3: it has to be a whole number, 4 or more"),
        (2, {"n_others": 3, "n_neighbors": 2}, "There are 3 samples: intervals need at least 4"),
        (2, {"least": 2}, "least is 2: it is a share"),
        (2, {"least": float("nan")}, "least is nan: it is a share"),
    ],
)
def test_questions_that_make_no_sense(kernels: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare({str(seed): GradientKernel(network(seed)) for seed in range(kernels)}, inputs(), **options)


def test_networks_that_cannot_be_compared_are_noticed_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("kinsight.stability._view", lambda kernel, *rest: asked.append(kernel))
    kernel = GradientKernel(network())
    pair = ("a", kernel)
    nameless: Any = ([kernel, kernel], [(1, kernel), (2, kernel)], ["ab", "cd"])
    with pytest.raises(InputError, match=r"'a'\]: pass at least two"):
        compare([pair], inputs())
    with pytest.raises(InputError, match="of different names"):
        compare([pair, pair], inputs())
    for wrong in nameless:
        with pytest.raises(InputError, match="results are told by name"):
            compare(iter(wrong), inputs())
    assert not asked
    with pytest.raises(InputError, match="of different names"):
        compare(iter([pair, ("b", kernel), pair]), inputs())
    assert len(asked) == 2


def test_the_figure_shows_every_network(found: Stability, tmp_path: Path) -> None:
    hostile = replace(found, names=("<script>alert(1)</script>", 'a"b&c', "end\x01\x1b\n\ud800"))
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
    with pytest.raises(InputError, match="there is no folder"):
        write_trajectory(tmp_path / "none" / "run.svg", found)
    two = compare({"a": nudged(0.1), "b": nudged(0.0)}, inputs(), n_neighbors=5, n_anchors=20, n_bootstrap=10)
    with pytest.raises(InputError, match="at least three networks, and there are 2"):
        trajectory(two)


def test_the_figure_leaves_out_what_is_undefined(found: Stability) -> None:
    """Of four networks the second has no correlation of counts with the last: a gap between two parts of a curve."""
    values = torch.full((4, 4), 0.8, dtype=torch.float64)
    values[1, 3] = torch.nan
    counts = Agreement(values, values - 0.1, values + 0.1)
    whole = Agreement(*(each.nan_to_num(nan=0.5) for each in (counts.values, counts.low, counts.high)))
    gap = replace(found, names=tuple("abcd"), counts=counts, similarities=whole, neighbors=whole, alignments=whole)
    root = ElementTree.fromstring(trajectory(gap))

    def drawn(tag: str) -> int:
        return sum(each.tag.endswith(tag) for each in root.iter())

    assert (drawn("circle"), drawn("polyline"), drawn("polygon")) == (4 * 3 - 1, 4 + 1, 4 + 1)
    assert "nan" not in "".join(value for each in root.iter() for name, value in each.items() if name != "aria-label")


def test_long_names_of_many_files_fit_under_the_axis(found: Stability) -> None:
    t = 40
    whole = Agreement(*torch.full((3, t, t), 0.8, dtype=torch.float64))
    names = tuple(f"runs/first/checkpoint-{number:05d}.safetensors" for number in range(t))
    many = replace(found, names=names, counts=whole, similarities=whole, neighbors=whole, alignments=whole)
    texts = [each for each in ElementTree.fromstring(trajectory(many)).iter() if each.tag.endswith("text")]
    shown = [each.text for each in texts if "rotate" in each.attrib.get("transform", "")]
    assert 8 <= len(shown) <= 12
    assert shown[-1] == "…heckpoint-00038"
    few = ElementTree.fromstring(trajectory(found))
    assert not [each for each in few.iter() if "transform" in each.attrib]
    titles = [each.text for each in few.iter() if each.tag.endswith("text")][:2]
    assert titles == ["Agreement with end, the last", "5 nearest neighbors among 80 samples. Bands are 95 % intervals."]

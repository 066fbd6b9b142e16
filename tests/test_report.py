"""The report holds what was found, loads nothing, and shows what comes from the data as text."""

import base64
import copy
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import kinsight
from kinsight.errors import ChangedDataError, InputError, WrongModelError
from kinsight.explorer import Findings, examine, render, write_report
from kinsight.explorer.pictures import data_uri, histogram, ticks

HOSTILE = "<script>alert('x')</script>"


def images(n: int = 24) -> kinsight.Samples:
    """Of three classes, a third of the picture brighter in each; every eighth label is wrong."""
    classes = torch.arange(n) % 3
    x = torch.rand(n, 1, 3, 12) + 2 * torch.nn.functional.one_hot(classes, 3)[:, None, :, None]
    labels = torch.where(torch.arange(n) % 8 == 0, (classes + 1) % 3, classes)
    ids = [f"{HOSTILE}{i}" for i in range(n)]
    return kinsight.Samples(x.reshape(n, 1, 6, 6), labels, ids=ids, class_names=["a&b", HOSTILE, "c"])


@pytest.fixture
def kernel() -> kinsight.GradientKernel:
    return kinsight.GradientKernel(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)))


def test_findings_are_what_the_library_says(kernel: kinsight.GradientKernel) -> None:
    data = images()
    truth = data.targets.clone()
    truth[3] = (truth[3] + 1) % 3
    found = examine(kernel, data, n_queries=3, n_neighbors=4, n_lonely=5, n_crowded=5, n_suspects=6, truth=truth)
    counts = kinsight.soft_count(kernel, data, normalization="flat")
    assert torch.equal(found.counts.values, counts.values)
    assert found.lonely == tuple(counts.order()[:5].tolist())
    assert found.crowded == tuple(counts.order().flip(0)[:5].tolist())
    suspects = kinsight.label_suspects(kernel, data, n_suspects=6)
    assert found.suspects is not None
    assert found.suspects.ids == suspects.ids
    assert found.check is not None
    assert found.check.n_wrong == 1
    assert found.neighbors is not None
    assert found.neighbors.positions.shape == (3, 4)


def test_the_page_loads_nothing_and_escapes_everything(kernel: kinsight.GradientKernel, tmp_path: Path) -> None:
    written = write_report(tmp_path / "page.html", kernel, images(), title=HOSTILE)
    page = (tmp_path / "page.html").read_text()
    assert written.n_bytes == len(page.encode())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a&amp;b" in page
    assert "default-src 'none'" in page or "default-src &#39;none&#39;" in page
    sources = re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"', page)
    assert all(source.startswith(("data:image/png;base64,", "#", "https://arxiv.org/")) for source in sources)
    assert page.count("data:image/png;base64,") > 20
    assert not re.search(r"url\((?!['\"]?data:)", page)
    assert "@import" not in page


def test_the_same_findings_give_the_same_page(kernel: kinsight.GradientKernel) -> None:
    data = images()
    assert render(examine(kernel, data)) == render(examine(kernel, data))


def test_data_without_targets_or_pictures(kernel: kinsight.GradientKernel) -> None:
    found = examine(kinsight.GradientKernel(nn.Linear(4, 2)), torch.randn(10, 4))
    assert found.suspects is None
    assert found.no_suspects
    page = render(found)
    assert "data:image/png" not in page
    assert "<html" in page


def test_regressions_and_texts() -> None:
    samples = kinsight.Samples(torch.randn(30, 4), torch.randn(30), preview=lambda place: f"{HOSTILE} text {place}")
    page = render(examine(kinsight.GradientKernel(nn.Linear(4, 1)), samples))
    assert "<script" not in page
    assert "text 1" in page


@pytest.mark.parametrize("is_trained", [False, True])
def test_the_noise_of_values_and_what_it_rests_on(is_trained: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 4, dtype=torch.float64)
    y = x.sum(dim=1, keepdim=True) + 0.3 * torch.randn(80, 1, dtype=torch.float64)
    model = nn.Linear(4, 1).double()
    if is_trained:
        wide = torch.cat([x, torch.ones(80, 1).double()], dim=1)
        best = torch.linalg.lstsq(wide, y).solution[:, 0]
        model.weight.data, model.bias.data = best[None, :4].clone(), best[4:].clone()
    found = examine(kinsight.GradientKernel(model), kinsight.Samples(x, y), n_noisy=4)
    assert found.noise is not None
    assert found.noise.is_credible == is_trained
    left = found.noise.noise_left
    assert found.noisy == tuple(left.argsort(descending=True).tolist()[:4])
    page = Page(render(found))
    told = " ".join(page.words)
    for check in found.noise.checks:
        assert check.name in told
        assert check.meaning in told
    assert ("Do not believe this" in told) != is_trained
    assert sum(a.get("href") == "#noise" for _, a in page.tags) == 1
    assert page.count("p", "yes" if is_trained else "no") == 1
    assert page.count("svg", "chart") == 5  # counts, scores of labels, fit, noise left, factors


def test_noise_is_not_told_of_classes_and_of_too_many_values(
    kernel: kinsight.GradientKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Noise of the labels" not in render(examine(kernel, images()))
    monkeypatch.setattr("kinsight.explorer.findings.MAX_EXACT", 20)
    many = examine(kinsight.GradientKernel(nn.Linear(4, 1)), kinsight.Samples(torch.randn(30, 4), torch.randn(30)))
    assert many.noise is None
    assert "kinsight denoise" in render(many)
    strange = examine(kernel, kinsight.Samples(torch.randn(9, 1, 6, 6), torch.randn(9)))  # three outputs, one value
    assert "Noise cannot be told from these labels" in render(strange)


def networks(n: int) -> dict[str, kinsight.GradientKernel]:
    """Of one kind, each further away from the last; their names are hostile."""
    torch.manual_seed(0)
    last = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    found = {}
    for number in range(n):
        model = copy.deepcopy(last)
        for parameter in model.parameters():
            parameter.data += 0.3 * (n - 1 - number) * torch.randn_like(parameter)
        found[f"{HOSTILE}{number}"] = kinsight.GradientKernel(model)
    return found


@pytest.mark.parametrize("n", [2, 4])
def test_how_stable_it_is_across_checkpoints(n: int) -> None:
    data, kernels = images(), networks(n)
    stability = kinsight.compare(kernels, data, n_neighbors=3, n_bootstrap=50)
    found = examine(list(kernels.values())[-1], data, stability=stability, n_volatile=4)
    assert found.volatile == tuple(stability.volatility.argsort(descending=True).tolist()[:4])
    text = render(found)
    page = Page(text)
    told = " ".join(page.words)
    assert stability.summary() in told
    assert "<script" not in text
    assert not [tag for tag, attributes in page.tags if "style" in attributes]  # the policy would drop it
    assert page.count("polyline") == (4 if n > 2 else 0)  # a curve each measure
    values, low, high = (
        float(each[0, -1]) for each in (stability.neighbors.values, stability.neighbors.low, stability.neighbors.high)
    )
    assert f"{values:.2f} ({low:.2f} to {high:.2f})" in told
    assert sum(a.get("href") == "#stability" for _, a in page.tags) == 1
    for place in found.volatile:
        assert f"± {float(stability.volatility[place]):.0%} of ranks" in told


def test_stability_is_of_this_data(kernel: kinsight.GradientKernel) -> None:
    stability = kinsight.compare(networks(2), images(20), n_neighbors=3, n_bootstrap=10)
    with pytest.raises(InputError, match="stability= is of 20 samples, and the data has 24, or others by id"):
        examine(kernel, images(), stability=stability)
    whitened = kinsight.compare(networks(2), images(), n_neighbors=3, n_bootstrap=10, normalization="whitened")
    with pytest.raises(InputError, match="stability= is of whitened similarity, and all else here of flat"):
        examine(kernel, images(), stability=whitened)
    data = images()
    first_last = dict(reversed(networks(2).items()))
    with pytest.raises(InputError, match="the last has other weights"):
        examine(kernel, data, stability=kinsight.compare(first_last, data, n_neighbors=3, n_bootstrap=10))
    same = kinsight.compare({"a": kernel, "b": kernel}, data, n_neighbors=3, n_bootstrap=10)
    moved = kinsight.Samples(data.take(range(24)).inputs + 0.1, data.targets, ids=data.ids)
    with pytest.raises(InputError, match="other inputs or targets under the same ids"):
        examine(kernel, moved, stability=same)
    assert examine(kernel, data, stability=same).volatile == ()
    assert "Stability" not in " ".join(Page(render(examine(kernel, images()))).words)


def test_numbers_to_show(kernel: kinsight.GradientKernel) -> None:
    found = examine(kernel, images(), n_queries=0, n_suspects=0, n_lonely=0, n_crowded=0)
    assert found.neighbors is None
    assert found.lonely == found.crowded == ()
    assert "<html" in render(found)
    with pytest.raises(InputError, match="n_lonely is -1"):
        examine(kernel, images(), n_lonely=-1)


class Page(HTMLParser):
    """Every opening tag of a page, and the words in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str, class_: str | None = None) -> int:
        return sum(t == tag and (class_ is None or class_ in (a.get("class") or "").split()) for t, a in self.tags)


def test_the_policy_allows_the_style_and_nothing_else(kernel: kinsight.GradientKernel) -> None:
    text = render(examine(kernel, images()))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    tags = Page(text).tags
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not [
        tag for tag, attributes in tags if tag in {"script", "link", "iframe", "object"} or "style" in attributes
    ]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_every_sample_is_there_and_every_image_described(kernel: kinsight.GradientKernel) -> None:
    found = examine(kernel, images(), n_queries=2, n_neighbors=3, n_lonely=4, n_crowded=5, n_suspects=3)
    page = Page(render(found))
    assert found.suspects is not None
    n_supporters = int((found.suspects.supporter_positions >= 0).sum())
    n_examples = sum(map(len, found.examples.values()))
    assert page.count("img") == 2 * (1 + 3) + 4 + 5 + len(found.suspects) + n_supporters + n_examples
    assert page.count("circle") == 24
    assert page.count("li", "card") == len(found.suspects) > 0
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert page.count("rect", "bar") > 1
    assert page.count("h1") == 1


def test_a_ring_marks_neighbors_with_another_label(kernel: kinsight.GradientKernel) -> None:
    data = images()
    found = examine(kernel, data, n_queries=4, n_neighbors=5)
    assert found.neighbors is not None
    assert data.targets is not None
    place = {name: position for position, name in enumerate(data.ids)}
    own = data.targets[[place[name] for name in found.neighbors.query_ids]]
    n_other = int((data.targets[found.neighbors.positions] != own[:, None]).sum())
    assert Page(render(found)).count("figure", "differs") == n_other > 0


def test_known_errors_are_marked_and_counted(kernel: kinsight.GradientKernel) -> None:
    data = images()
    assert data.targets is not None
    found = examine(kernel, data, truth=(data.targets + 1) % 3)
    assert found.check is not None
    assert found.check.n_found == len(found.suspects or ()) > 0
    assert Page(render(found)).count("span", "badge") == found.check.n_found


def test_samples_without_gradient_are_named() -> None:
    x = torch.randn(6, 3)
    x[2] = 0
    with pytest.warns(kinsight.errors.ZeroGradientWarning):
        found = examine(kinsight.GradientKernel(nn.Linear(3, 2, bias=False)), kinsight.Samples(x, ids=list("abcdef")))
    assert found.undefined_ids == ("c",)
    assert "1 samples have a zero gradient" in " ".join(Page(render(found)).words)


def test_photos_stay_small_and_flat_counts_have_one_bar() -> None:
    photo = Image.effect_noise((800, 600), 60).convert("RGB")
    assert data_uri(photo).startswith("data:image/jpeg;base64,")
    assert len(data_uri(photo)) < 40_000
    assert data_uri(photo.convert("CMYK").resize((9, 9))).startswith("data:image/png;base64,")
    assert [bar.n for bar in histogram([2.0, 2.0, float("nan")])] == [2]
    assert histogram([float("nan")]) == []
    assert ticks(0.0, 0.06) == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06])


def test_a_report_from_an_index_says_so_and_states_errors(kernel: kinsight.GradientKernel, tmp_path: Path) -> None:
    data = images()
    index = kinsight.Index.build(tmp_path / "index", kernel, data, dim=2048, normalization="flat")
    exact, found = (examine(kernel, data, n_queries=3, n_neighbors=4, index=each) for each in (None, index))
    assert exact.neighbors is not None
    assert found.neighbors is not None
    assert torch.equal(found.neighbors.positions, exact.neighbors.positions)  # no query is its own neighbor
    assert torch.equal(found.counts.values, index.soft_count().values)
    assert found.suspects is not None
    assert found.suspects.error == index.error
    page = render(found)
    assert "from an index, 2,048 numbers a sample" in page
    place, errors = found.lonely[0], found.counts.error
    assert errors is not None
    assert f"{float(found.counts.values[place]):.1f} ± {float(errors[place]):.1f}" in page
    assert "±" not in render(exact)
    assert all(route == "not needed" for route in _without_queries(kernel, data, index).subject.routes.values())


def _without_queries(kernel: kinsight.GradientKernel, data: kinsight.Samples, index: kinsight.Index) -> Findings:
    fresh = kinsight.GradientKernel(kernel.model)
    return examine(fresh, data, n_queries=0, index=index)


def test_a_report_is_not_made_from_the_index_of_something_else(kernel: kinsight.GradientKernel, tmp_path: Path) -> None:
    data = images()
    index = kinsight.Index.build(tmp_path / "index", kernel, data, dim=64)
    with pytest.raises(ChangedDataError):
        examine(kernel, images(), index=index)
    other = kinsight.GradientKernel(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    with pytest.raises(WrongModelError):
        examine(other, data, index=index)


def test_fit_is_told_with_its_regimes(kernel: kinsight.GradientKernel) -> None:
    data = images()
    found = examine(kernel, data, n_queries=0, n_suspects=0, n_examples=2)
    assert found.fit is not None
    truth = kinsight.fit_map(kernel, data)
    assert found.fit.regimes == truth.regimes
    assert all(places == tuple(truth.of(regime)[:2].tolist()) for regime, places in found.examples.items())
    text = render(found)
    assert truth.summary().split(".")[0].replace("<", "&lt;") in text
    for regime in set(truth.regimes):
        share = f"{truth.regimes.count(regime) / len(data):.1%}"
        assert re.search(rf"{regime} <span class=\"soft\">{share}", text)
    values = kinsight.Samples(data.take(range(24)).inputs, torch.randn(24, 7))
    found = examine(kernel, values, n_queries=0, n_suspects=0)
    assert found.fit is None
    assert "cannot be compared with the targets" in render(found)
    assert "were not asked for" in render(examine(kernel, data, n_queries=0, n_suspects=0, n_examples=0))
    without = kinsight.Samples(data.take(range(24)).inputs)
    assert "no labels that the network could fit" in render(examine(kernel, without, n_queries=0))

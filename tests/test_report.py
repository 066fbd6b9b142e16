"""The report holds what was found, loads nothing, and shows what comes from the data as text."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import kinsight
from kinsight.errors import InputError
from kinsight.explorer import examine, render, write_report

HOSTILE = "<script>alert('x')</script>"


def images(n: int = 24) -> kinsight.Samples:
    x = torch.rand(n, 1, 6, 6)
    ids = [f"{HOSTILE}{i}" for i in range(n)]
    return kinsight.Samples(x, torch.randint(0, 3, (n,)), ids=ids, class_names=["a&b", HOSTILE, "c"])


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


def test_numbers_to_show(kernel: kinsight.GradientKernel) -> None:
    found = examine(kernel, images(), n_queries=0, n_suspects=0, n_lonely=0, n_crowded=0)
    assert found.neighbors is None
    assert found.lonely == found.crowded == ()
    assert "<html" in render(found)
    with pytest.raises(InputError, match="n_lonely is -1"):
        examine(kernel, images(), n_lonely=-1)

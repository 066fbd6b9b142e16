"""The benchmarks compare like with like; the page says which marks are not met; the guard says what became slower."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kinsight
from benchmarks import guard, page, peers

OUTPUTS = {1: lambda returned: returned[:, 0], 3: "logits"}
TOLERANCE = 1e-10  # float64, sums over a few hundred parameters


def tanh_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double().eval()


def some_inputs(n: int) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    ("n_outputs", "by_kinsight", "by_peer"),
    [
        (1, lambda kernel, x, y: kernel(x), lambda model, x, y: peers.gram_by_torch_func(model, x)),
        (3, lambda kernel, x, y: kernel(x) * 3, lambda model, x, y: peers.gram_by_torch_func(model, x, 3)),
        (3, lambda kernel, x, y: kernel.blocks(x), lambda model, x, y: peers.blocks_by_torch_func(model, x, 3)),
        (1, lambda kernel, x, y: kernel(x, y), lambda model, x, y: peers.rectangle_by_torch_func(model, x, y, chunk=2)),
        (
            1,
            lambda kernel, x, y: kinsight.neighbors(kernel, x, y, 3, normalization="flat").similarities,
            lambda model, x, y: peers.neighbors_by_torch_func(model, x, y, 3, chunk=2),
        ),
        *(
            (
                c,
                lambda kernel, x, y: kinsight.soft_count(kernel, y).values,
                lambda model, x, y, c=c: peers.soft_count_by_torch_func(model, y, c, chunk=2),
            )
            for c in OUTPUTS
        ),
    ],
    ids=["gram", "trace", "blocks", "rectangle", "neighbors", "soft count", "whitened soft count"],
)
def test_peers_do_the_same_job(n_outputs: int, by_kinsight: Callable[..., Tensor], by_peer: Callable[..., Tensor]):
    model, x, y = tanh_network(), some_inputs(4), some_inputs(7)
    wanted = by_kinsight(kinsight.GradientKernel(model, OUTPUTS[n_outputs]), x, y)
    torch.testing.assert_close(by_peer(model, x, y), wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_marks_are_of_measures_and_claims_that_there_are():
    for name, marks in page.MARKS.items():
        assert name.split("-")[0] in page.CLAIMS
        assert set(marks) <= set(page.MEASURES)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [({"times_floor": 1.49}, "met"), ({"times_floor": 1.51}, "**NOT met**"), ({}, "not measured")],
)
def test_a_mark_that_is_not_met_is_said_so(facts: dict[str, float], verdict: str):
    text = page.marks_table([{"claim": "gram", "job": "mlp-n1024-c1", **facts}])
    row = next(line for line in text.splitlines() if "`gram-mlp-n1024-c1` | floor" in line)
    assert row.endswith(f"| {verdict} |")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ([1.34], None),
        ([1.5, 1.2], None),  # disturbed once
        ([1.5, 1.4], "job: kinsight has become slower. epochs is 1.40, and 1.00 in the committed result"),
    ],
)
def test_the_guard_names_what_became_slower(now: list[float], message: str | None, tmp_path: Path):
    (tmp_path / "job.json").write_text(json.dumps({"epochs": 1.0}), encoding="utf-8")
    left = iter(now)
    found = guard.fault("job", guard.Guarded("epochs", lambda n_runs: next(left), "benchmarks.job"), 1, tmp_path)
    assert (found is None) if message is None else (found is not None and found.startswith(message))
    assert list(left) == []


def test_the_guard_says_what_is_not_stored(tmp_path: Path):
    guarded = guard.Guarded("epochs", lambda n_runs: 1.0, "benchmarks.job")
    assert "no epochs is stored" in (guard.fault("job", guarded, 1, tmp_path) or "")

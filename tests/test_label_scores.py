"""How suspect a label is: probabilities right as often as they say, distances in robust deviations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinsight.labels.calibration import calibrated
from kinsight.labels.votes import Ballots
from tests.test_engine import EXACT, error


def test_probabilities_are_right_as_often_as_they_say() -> None:
    """Labels drawn from softmax(4 evidence), a tenth of them at random."""
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    p = (4 * evidence).softmax(dim=1)
    labels = torch.multinomial(p, 1, generator=generator)[:, 0]
    is_noise = torch.rand(len(labels), generator=generator) < 0.1
    labels[is_noise] = (labels[is_noise] + torch.randint(1, 5, (int(is_noise.sum()),), generator=generator)) % 5
    found = calibrated(evidence, labels)
    assert found.sharpness == pytest.approx(4, rel=0.05)
    assert found.noise == pytest.approx(0.1, abs=0.01)
    own = found.values.gather(1, labels[:, None])[:, 0]
    assert error(found.values.sum(dim=1), torch.ones(len(labels), dtype=torch.float64)) < EXACT
    is_label = nn.functional.one_hot(labels, 5).bool()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (found.values >= low) & (found.values < low + 0.2)
        assert float(is_label[inside].double().mean()) == pytest.approx(float(found.values[inside].mean()), abs=0.03)
    assert float((1 - own)[is_noise].mean()) > 2 * float((1 - own)[~is_noise].mean())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_calibration_of_what_is_clear_and_of_what_says_nothing(scale: float) -> None:
    labels = torch.arange(30) % 3
    clear = scale * nn.functional.one_hot(labels, 3).double()
    assert float(calibrated(clear, labels).values.gather(1, labels[:, None]).min()) > 0.9
    nothing = calibrated(scale * torch.ones(30, 3, dtype=torch.float64), labels)
    assert error(nothing.values, torch.full((30, 3), 1 / 3, dtype=torch.float64)) < EXACT
    clear[4] = torch.nan
    assert bool(calibrated(clear, labels).values[4].isnan().all())
    single = calibrated(torch.ones(5, 1, dtype=torch.float64), torch.zeros(5, dtype=torch.long))
    assert single.values.tolist() == [[1.0]] * 5


def test_values_are_off_by_the_axis_that_is_off_most() -> None:
    """In standard deviations of each axis, robust ones, whatever its unit."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5000, 50, dtype=torch.float64, generator=generator)
    noise[7, 3] = 8.0
    units = torch.logspace(-6, 6, 50, dtype=torch.float64)
    values = 3 + torch.randn(5000, 50, dtype=torch.float64, generator=generator)
    ballots = Ballots.of(values * units)
    found = ballots.distances((values - noise) * units - ballots.center)
    assert int(found.argmax()) == 7
    assert float(found[7]) == pytest.approx(8, rel=0.1)
    alone = Ballots.of(values[:, :1])
    one = alone.distances(values[:, :1] - noise[:, :1] - alone.center)
    assert float((one > 3).double().mean()) == pytest.approx(0.0027, abs=0.002)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_values_most_of_which_are_told_exactly(unit: float) -> None:
    values = torch.arange(1.0, 101.0, dtype=torch.float64)[:, None] * unit
    means = values * (1 + 1e-12)  # rounding
    means[:10] += 2 * unit
    ballots = Ballots.of(values)
    found = ballots.distances(means - ballots.center)
    assert found[:10].tolist() == pytest.approx([10 / 1.2533] * 10)
    assert float(found[10:].max()) < 1e-6
    assert float(ballots.distances(values * (1 + 1e-12) - ballots.center).max()) == 0
    means[3] = torch.nan
    assert ballots.distances(means).isnan().nonzero().flatten().tolist() == [3]
    assert bool(ballots.distances(torch.full_like(values, torch.nan)).isnan().all())

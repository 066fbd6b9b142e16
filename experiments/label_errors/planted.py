"""Data with wrong labels planted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinsight import Samples
from kinsight.labels.folds import Folds
from kinsight.sources import load_samples

SHARE = 0.1
"""Of labels that are wrong."""


@dataclass(frozen=True, eq=False)
class Planted:
    """Images with labels, some of them wrong.

    Args:
        inputs: [n 1 28 28], from 0 to 1.
        given: labels, some wrong, [n].
        is_wrong: which, [n].
    """

    inputs: Tensor
    given: Tensor
    is_wrong: Tensor

    @property
    def samples(self) -> Samples:
        """Inputs and labels as they were given."""
        return Samples(self.inputs, self.given, batch_size=500)


def planted(data: str, n: int, noise: str, seed: int) -> Planted:
    """Some random samples of a data set, a tenth of their labels wrong.

    Args:
        data: name of a built-in data set.
        n: samples.
        noise: 'symmetric': any sample, any other class; 'confused': classes that a linear classifier takes for others,
            as often as it does so for images it has not seen, and as those others.
        seed: of all that is random.
    """
    generator = torch.Generator().manual_seed(seed)
    everything = load_samples(data)
    batch = everything.take(torch.randperm(len(everything), generator=generator)[:n].tolist())
    assert isinstance(batch.inputs, Tensor)
    assert batch.targets is not None
    inputs, true = batch.inputs.float().reshape(n, 1, 28, 28), batch.targets.long()
    inputs = inputs / 255 if float(inputs.max()) > 2 else inputs
    if noise == "symmetric":
        chosen = torch.randperm(n, generator=generator)[: round(SHARE * n)]
        new = (true[chosen] + torch.randint(1, 10, (len(chosen),), generator=generator)) % 10
    else:
        confusions = _confusions(inputs.flatten(1), true, seed)
        rates = confusions.sum(dim=1) / torch.bincount(true, minlength=10)
        chosen = torch.multinomial(rates[true], round(SHARE * n), generator=generator)
        new = torch.multinomial(confusions[true[chosen]], 1, generator=generator)[:, 0]
    given = true.clone()
    given[chosen] = new
    return Planted(inputs, given, given != true)


def _confusions(x: Tensor, true: Tensor, seed: int) -> Tensor:
    """How often a linear classifier takes an image of one class, that it has not seen, for another. [10 10]."""
    folds, said = Folds.random(len(x), 5, seed=seed), torch.empty_like(true)
    for fold in range(5):
        held, rest = folds.held_out(fold), (folds.numbers != fold).nonzero().flatten()
        linear = nn.Linear(x.shape[1], 10)
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)  # the same whatever was drawn before
        optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=60)

        def closure(
            linear: nn.Linear = linear, optimizer: torch.optim.Optimizer = optimizer, rest: Tensor = rest
        ) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(linear(x[rest]), true[rest]) + 1e-3 * linear.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        said[held] = linear(x[held]).argmax(dim=1)
    counts = torch.zeros(10, 10).index_put_((true, said), torch.ones(len(x)), accumulate=True)
    return counts.fill_diagonal_(0)

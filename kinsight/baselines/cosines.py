"""Cosines of vectors other than gradients: of a network's last features, or of the inputs themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kinsight.captures.running import call_model, untouched
from kinsight.errors import InputError, ModelError
from kinsight.labels.votes import Ballots, check_power, known_targets, of_others
from kinsight.samples import Inputs, Samples

ROWS = 1024
"""Samples that are compared with all others at once."""


class Cosines(ABC):
    """Similarity as the cosine of two vectors.

    Args:
        power: exponent of the weights of votes.
        n_neighbors: so many of the nearest vote, with equal weight, in place of all with powers.
    """

    def __init__(self, *, power: float = 8.0, n_neighbors: int | None = None) -> None:
        if n_neighbors is not None and n_neighbors < 1:
            raise InputError(f"n_neighbors is {n_neighbors}: ask for at least 1.")
        check_power(power)
        self.power = power
        self.n_neighbors = n_neighbors

    @abstractmethod
    def vectors(self, samples: Samples) -> Tensor:
        """The vectors compared. [n d]."""

    def scores(self, queries: Any, data: Any) -> Tensor:
        """Cosines of queries with all samples of the data. [q n]; 0 where a vector is zero."""
        return self._units(Samples.wrap(queries)) @ self._units(Samples.wrap(data)).T

    def label_scores(self, data: Any) -> Tensor:
        """Share of the votes of all others that is on other labels; of values, distance from their mean. [n].

        Raises:
            TargetError: the data has no targets.
        """
        samples = Samples.wrap(data)
        ballots, units = Ballots.of(known_targets(samples)), self._units(samples)
        everything, shares = ballots.part(slice(0, len(units))), []
        for rows, block in self._blocks(units):
            weights = self._weights(block, rows)
            shares.append(weights @ everything / weights.sum(dim=1, keepdim=True))
        found = torch.cat(shares)
        if ballots.classes is None:
            return ballots.distances(found)
        return 1 - found.gather(1, ballots.values[:, None])[:, 0]

    def _weights(self, block: Tensor, rows: slice) -> Tensor:
        """Of the votes of all for some samples, [r n], float64; 0 of each for itself."""
        n = block.shape[1]
        if self.n_neighbors is None:
            return of_others(block, rows, slice(0, n)).clamp(0, 1).pow(self.power)
        is_self = torch.arange(n) == torch.arange(rows.start, rows.stop)[:, None]
        nearest = block.masked_fill(is_self, -torch.inf).topk(min(self.n_neighbors, n - 1), dim=1).indices
        return torch.zeros(block.shape, dtype=torch.float64).scatter_(1, nearest, 1.0)

    def _units(self, samples: Samples) -> Tensor:
        return nn.functional.normalize(self.vectors(samples).float(), dim=1)

    def _blocks(self, units: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(units), ROWS):
            rows = slice(start, min(len(units), start + ROWS))
            yield rows, units[rows] @ units.T


class InputCosine(Cosines):
    """Of the inputs themselves, flattened: pixels. No network."""

    def vectors(self, samples: Samples) -> Tensor:
        """The inputs. [n d].

        Raises:
            InputError: they are no single tensor.
        """
        parts = []
        for batch in samples.batches():
            if not isinstance(batch.inputs, Tensor):
                raise InputError("Inputs are several tensors: there is no one vector a sample to compare.")
            parts.append(batch.inputs.flatten(1).float())
        return torch.cat(parts)


class PenultimateCosine(Cosines):
    """Of what goes into a network's last linear layer: its features.

    Args:
        model: any module, in eval mode. It comes back as it was.
        head: name of the layer; the last `nn.Linear` that is called where left out.
        power: exponent of the weights of votes.
        n_neighbors: so many of the nearest vote, in place of all with powers.
    """

    def __init__(
        self, model: nn.Module, *, head: str | None = None, power: float = 8.0, n_neighbors: int | None = None
    ) -> None:
        super().__init__(power=power, n_neighbors=n_neighbors)
        self.model = model
        known = dict(model.named_modules())
        if head is not None and head not in known:
            raise InputError(f"head {head!r} is no layer of the model: there are {', '.join(list(known)[1:8])} ...")
        self._heads = [known[head]] if head is not None else [m for m in known.values() if isinstance(m, nn.Linear)]

    def vectors(self, samples: Samples) -> Tensor:
        """The features, positions averaged where the layer is applied at several. [n d].

        Raises:
            ModelError: no linear layer was called.
        """
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        with untouched(self.model, {}), torch.no_grad():
            return torch.cat([self._of(batch.to(device).inputs, len(batch)) for batch in samples.batches()])

    def _of(self, inputs: Inputs, n: int) -> Tensor:
        seen: list[Tensor] = []
        hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in self._heads]
        try:
            call_model(self.model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if not seen or len(seen[-1]) != n:
            raise ModelError("No linear layer saw one vector a sample: name the last layer with head=.")
        features = seen[-1].detach().flatten(1, -2).mean(dim=1) if seen[-1].dim() > 2 else seen[-1].detach()
        return features.cpu()

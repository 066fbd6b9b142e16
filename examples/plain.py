"""A loss on the similarity of digits of one class, in a plain loop: `python -m examples.plain`."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

import kinsight
from examples.digits import accuracy, digits, network


def main(n_epochs: int = 3, weight: float = 0.1) -> tuple[list[dict[str, float]], float]:
    """Train; what was watched, and the share of test images that are told right."""
    train, test, probe = digits()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    alike = kinsight.SimilarityLoss(model, "one_vs_rest", weight=weight)
    watcher = kinsight.SimilarityWatcher(model, probe, every=20)
    history = []
    for _ in range(n_epochs):
        for rows in torch.randperm(len(train[0])).split(64):
            x, y = train[0][rows], train[1][rows]
            optimizer.zero_grad()
            (cross_entropy(model.train()(x), y) + alike(x, y)).backward()
            optimizer.step()
            if (seen := watcher.step()) is not None:
                history.append(seen)
                print({name: round(value, 3) for name, value in seen.items()})
    return history, accuracy(model, test)


if __name__ == "__main__":
    print(f"{main()[1]:.1%} of the test images are told right")

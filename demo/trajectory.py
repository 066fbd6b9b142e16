"""From which epoch on do neighbors stay? The demo's network on real digits, along its training and from two seeds.

demo/trajectory.py            draws docs/trajectory.svg and prints the table of section 12 of docs/mathematics.md
demo/trajectory.py --quick    a few hundred digits and three epochs, for the tests
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kinsight
from demo.network import ConvNet, convnet
from kinsight.explorer import write_trajectory
from kinsight.sources import load_samples
from kinsight.stability import Stability

EPOCHS = (0, 1, 2, 3, 4, 6, 8)
"""After which the network is looked at; 0: untrained."""

MEASURES = {
    "neighbors": "nearest neighbors in common", "similarities": "rank correlation of similarities",
    "counts": "rank correlation of counts", "alignments": "centered alignment",
}  # fmt: skip


def load_digits(n: int) -> tuple[Tensor, Tensor]:
    """MNIST digits in random order, the same ones every time. [n 1 28 28], [n]."""
    samples = load_samples("mnist5k")
    batch = samples.take(torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:n].tolist())
    assert isinstance(batch.inputs, Tensor)
    assert batch.targets is not None
    return batch.inputs, batch.targets


def train(images: Tensor, labels: Tensor, epochs: Sequence[int], seed: int) -> dict[int, ConvNet]:
    """The network after each of these epochs; its learning rate falls to 0 until the last."""
    torch.manual_seed(seed)
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters())
    n_steps = max(epochs) * -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps)
    kept = {0: copy.deepcopy(model).eval()}
    for epoch in range(1, max(epochs) + 1):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        if epoch in epochs:
            kept[epoch] = copy.deepcopy(model).eval()
            with torch.no_grad():
                right = float((model(images).argmax(dim=1) == labels).float().mean())
            print(f"seed {seed}, epoch {epoch}: right on {right:.1%} of {len(labels):,} digits", flush=True)
    return kept


def compare(networks: dict[str, ConvNet], digits: Tensor) -> Stability:
    """How far they agree on the digits, kernels made one by one."""

    def kernels() -> Iterator[tuple[str, kinsight.GradientKernel]]:
        for name, model in networks.items():
            yield name, kinsight.GradientKernel(model)

    return kinsight.compare(kernels(), digits)


def table(found: dict[str, Stability]) -> str:
    """What the last two networks of each have in common, with intervals, in Markdown."""
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for name, words in MEASURES.items():
        pairs = [list(stability.pairs())[-1] for stability in found.values()]
        cells = [
            f"{pair[name]:.3f} [{pair[f'{name}_interval'][0]:.3f}, {pair[f'{name}_interval'][1]:.3f}]" for pair in pairs
        ]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few hundred digits and three epochs")
    parser.add_argument("--out", type=Path, default=Path("docs/trajectory.svg"), help="the figure; it is replaced")
    options = parser.parse_args()
    start = time.monotonic()
    n, n_seen, epochs = (300, 60, (0, 1, 3)) if options.quick else (4000, 1000, EPOCHS)

    images, labels = load_digits(n)
    seeds = [train(images, labels, epochs, seed) for seed in (0, 1)]
    seen = images[:n_seen]
    run = compare({f"epoch {epoch}" if epoch else "untrained": seeds[0][epoch] for epoch in epochs}, seen)
    write_trajectory(options.out, run, overwrite=True)
    print(f"\n{run.summary()}\n")
    both = {
        words: compare({f"seed {seed}": kept[epoch] for seed, kept in enumerate(seeds)}, seen)
        for words, epoch in (("two seeds, untrained", 0), (f"two seeds, epoch {max(epochs)}", max(epochs)))
    }
    print(table({f"epochs {epochs[-2]} and {epochs[-1]}": run, **both}))
    print(f"\nThe figure: {options.out}. {time.monotonic() - start:.0f} s in all.")


if __name__ == "__main__":
    main()

"""The demo: real digits, a few wrong labels, a network trained on them, and what kinsight sees in it.

make demo            everything, two to three minutes on two cores
demo/run.py --quick  a few hundred digits and two epochs, for the tests
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kinsight
from demo.network import ConvNet, convnet
from demo.pictures import draw_sheet, show_strip
from kinsight.explorer import Findings, examine, render
from kinsight.sources import load_samples

WRONG_SHARE = 0.01
SEED = 0
TWINS = 0.99
N_PICTURED, N_LISTED = 4, 8  # of what is found, in the terminal

console = Console(highlight=False)


@dataclass(frozen=True)
class Digits:
    """Training and held-out digits; `labels` are what the network is trained on, `truth` what MNIST says."""

    images: Tensor
    truth: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor

    @property
    def planted(self) -> Tensor:
        """Positions of the wrong labels."""
        return (self.labels != self.truth).nonzero().flatten()


def load_digits(n: int) -> Digits:
    """MNIST digits, a fifth of them held out, 1 % of the other labels replaced by another digit at random."""
    samples = load_samples("mnist5k")
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(samples), generator=generator)[:n].tolist()
    batch = samples.take(order)
    n_training = n * 4 // 5
    images, digits = batch.inputs, batch.targets
    assert isinstance(images, Tensor)
    assert digits is not None
    truth = digits[:n_training]
    labels = truth.clone()
    wrong = torch.randperm(n_training, generator=generator)[: max(1, round(WRONG_SHARE * n_training))]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    return Digits(images[:n_training], truth, labels, images[n_training:], digits[n_training:])


def train(digits: Digits, n_epochs: int) -> ConvNet:
    """The network, trained until it has memorized its wrong labels too."""
    torch.manual_seed(SEED)
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters())
    n_steps = n_epochs * -(-len(digits.labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=n_steps, loss="")
        for _ in range(n_epochs):
            for rows in torch.randperm(len(digits.labels)).split(64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(digits.images[rows]), digits.labels[rows])
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(task, advance=1, loss=f"loss {float(loss.detach()):.3f}")
    return model.eval()


@torch.no_grad()
def share_right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the network gives these labels."""
    return float((model(images).argmax(dim=1) == labels).float().mean())


def show_index(index: kinsight.Index) -> None:
    """What was built, and what is asked of it alone: twins and hubs."""
    about, table = index.info(), index.build_neighbors(n_neighbors=10)
    twins, hub = table.duplicates(TWINS), int(table.occurrences().argmax())
    size = f"{about['samples']:,} digits, {about['dim']:,} numbers each, {about['bytes'] / 1e6:.0f} MB on disk"
    console.print(f"\n[bold]An index[/] of {size}; its similarities are off by {about['error']:.3f}.")
    console.print(
        f"{sum(map(len, twins)):,} digits have a twin (similarity above {TWINS}); digit {index.ids[hub]} is among the "
        f"ten nearest of {int(table.occurrences()[hub])} others.\n"
    )


def show_neighbors(found: Findings, digits: Digits) -> None:
    """Held-out digits and their neighbors."""
    neighbors = found.neighbors
    assert neighbors is not None
    if console.is_terminal:
        console.print("\n[bold]Nearest neighbors[/]: left, a digit the network was not trained on")
        for row in range(N_PICTURED):
            places, label = neighbors.positions[row].tolist(), int(digits.held_out_labels[row])
            values = neighbors.similarities[row].tolist()
            captions = [f"{int(digits.labels[p])}  ({v:.2f})" for p, v in zip(places, values, strict=True)]
            images = [digits.held_out_images[row], *(digits.images[place] for place in places)]
            show_strip(console, images, [f"[bold]{label}[/]", *captions])
    table = Table("held out", "label", "labels of the neighbors", "similarity", title="Nearest neighbors")
    for row, name in enumerate(neighbors.query_ids):
        labels = " ".join(str(int(digits.labels[place])) for place in neighbors.positions[row].tolist())
        first, last = neighbors.similarities[row, [0, -1]].tolist()
        table.add_row(str(name), str(int(digits.held_out_labels[row])), labels, f"{first:.2f} to {last:.2f}")
    console.print(table)


def show_crowds(found: Findings, digits: Digits) -> None:
    """The loneliest and the most crowded digits."""
    for what, places in (("Loneliest", found.lonely), ("Most crowded", found.crowded)):
        labels, counts = digits.labels[list(places)].tolist(), found.counts.values[list(places)].tolist()
        assert found.counts.error is not None
        errors = found.counts.error[list(places)].tolist()
        pairs = [f"{a}  ({b:.0f} ± {c:.0f})" for a, b, c in zip(labels, counts, errors, strict=True)]
        console.print(f"\n[bold]{what}[/], by label and soft count: {', '.join(pairs[:N_LISTED])}")
        if console.is_terminal:
            show_strip(console, [digits.images[place] for place in places], pairs)


def show_suspects(found: Findings, digits: Digits) -> None:
    """How many planted labels were found, and the doubtful labels that are MNIST's own."""
    suspects, check = found.suspects, found.check
    assert suspects is not None
    assert check is not None
    planted = set(digits.planted.tolist())
    places = suspects.positions.tolist()
    own = [row for row, place in enumerate(places) if place not in planted]
    if console.is_terminal:
        console.print("\n[bold]First suspects[/]: the label each was given, and what its neighbors say")
        captions = [f"{int(a)} -> [bold]{int(b)}[/]" for a, b in zip(suspects.given, suspects.suggested, strict=True)]
        show_strip(console, [digits.images[place] for place in places], captions)
    console.print(
        f"\n[bold]{check.n_found} of the {check.n_wrong} planted wrong labels[/] are among the first {check.n_shown} "
        f"suspects (AUROC of the score over all {len(digits.labels):,} digits: {check.auroc:.3f})."
    )
    console.print(f"The other {len(own)} suspects have the label MNIST gives them. Judge yourself; the first of these:")
    if console.is_terminal:
        show_strip(console, [digits.images[places[row]] for row in own], [captions[row] for row in own])
    table = Table("id", "label", "suggested", "score", title="Doubtful labels of MNIST itself")
    for row in own[:N_LISTED]:
        record = (suspects.ids[row], int(suspects.given[row]), int(suspects.suggested[row]))
        table.add_row(*map(str, record), f"{float(suspects.scores[row]):.3f}")
    console.print(table)


def save(model: nn.Module, digits: Digits, folder: Path) -> None:
    """What the command line needs to look at the same network and data."""
    save_file(model.state_dict(), folder / "convnet.safetensors")
    np.savez_compressed(folder / "train.npz", x=digits.images.numpy(), y=digits.labels.numpy())
    np.savez_compressed(folder / "held-out.npz", x=digits.held_out_images.numpy(), y=digits.held_out_labels.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few hundred digits and two epochs")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for what is written")
    options = parser.parse_args()
    start = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits(300 if options.quick else 5000)
    console.print(
        f"{len(digits.labels):,} real MNIST digits to train on, {len(digits.held_out_labels):,} held out. "
        f"[bold]{len(digits.planted)} training labels (1 %) were made wrong on purpose.[/]"
    )
    model = train(digits, 2 if options.quick else 30)
    held_out = share_right(model, digits.held_out_images, digits.held_out_labels)
    memorized = share_right(model, digits.images[digits.planted], digits.labels[digits.planted])
    console.print(f"Right on {held_out:.1%} of the held-out digits; memorized {memorized:.0%} of the wrong labels.\n")

    names = [str(digit) for digit in range(10)]
    data = kinsight.Samples(digits.images, digits.labels, class_names=names)
    held_out_ids = [f"held-out {number}" for number in range(len(digits.held_out_labels))]
    queries = kinsight.Samples(digits.held_out_images, digits.held_out_labels, ids=held_out_ids, class_names=names)
    kernel = kinsight.GradientKernel(model)
    index = kinsight.Index.build(
        options.out / "index", kernel, data, error=0.02, normalization="flat", overwrite=True, progress=True
    )
    show_index(index)
    found = examine(
        kernel,
        data,
        index=index,
        queries=queries,
        n_suspects=max(8, len(digits.planted)),
        truth=digits.truth,
        title="MNIST, as a small network sees it",
        progress=True,
    )
    show_neighbors(found, digits)
    show_crowds(found, digits)
    show_suspects(found, digits)

    report = options.out / "report.html"
    report.write_text(render(found), encoding="utf-8")
    draw_sheet(found, digits.images, digits.held_out_images, options.out / "neighbors.png")
    save(model, digits, options.out)
    console.print(f"\nThe report: [bold]{report}[/], opens offline. {time.monotonic() - start:.0f} s in all.")
    console.print("The same from the command line, as on your own model and data:\n")
    common = f"demo.network:convnet npz:{options.out}/train.npz --checkpoint {options.out}/convnet.safetensors"
    print(f".venv/bin/kinsight neighbors {common} --queries npz:{options.out}/held-out.npz --ids 0 --ids 1 -k 5")
    print(f".venv/bin/kinsight index {common} --out {options.out}/again --error 0.02 --normalization flat")
    print(f".venv/bin/kinsight labels --index {options.out}/index --top 20")
    print(f".venv/bin/kinsight report {common} --index {options.out}/index --out {options.out}/again.html")


if __name__ == "__main__":
    main()

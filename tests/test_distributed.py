"""Data parallel training: each process makes pairs of its own samples, and gradients are averaged as of any loss."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import kinsight

N_PROCESSES = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def part(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(10, 4, dtype=torch.float64, generator=generator), torch.arange(10) % 3


def gradients(model: nn.Module, wrapped: nn.Module, rank: int) -> list[Tensor]:
    x, y = part(rank)
    alike = kinsight.SimilarityLoss(wrapped, weight=1.0)
    model.zero_grad()
    (F.cross_entropy(wrapped(x), y) + alike(x, y)).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


class Spare(nn.Module):
    """A layer of it has no part in what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.spare = network(), nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def work(rank: int, meeting: str, found: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", world_size=N_PROCESSES, rank=rank)
    model = network()
    ours = gradients(model, DistributedDataParallel(model), rank)
    spare = Spare()
    of_spare = gradients(spare, DistributedDataParallel(spare, find_unused_parameters=True), rank)
    assert all(torch.equal(a, b) for a, b in zip(ours, of_spare, strict=True))  # the spare layer has none
    watcher = kinsight.SimilarityWatcher(model, kinsight.Samples(*part(0)), every=1)
    torch.save([*ours, torch.tensor(watcher.step() is not None)], f"{found}{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path / "meeting"), str(tmp_path / "found")), nprocs=N_PROCESSES)
    saved = [torch.load(tmp_path / f"found{rank}", weights_only=True) for rank in range(N_PROCESSES)]
    model = network()
    alone = [gradients(model, model, rank) for rank in range(N_PROCESSES)]
    for *ours, _ in saved:
        for got, first, second in zip(ours, *alone, strict=True):
            torch.testing.assert_close(got, (first + second) / 2, rtol=1e-9, atol=1e-12)
    assert [bool(each[-1]) for each in saved] == [True, False]  # the first process alone looks

"""What is held, shared, and given back."""

import torch
from torch import Tensor, nn

from kinsight.batch_gradients import BatchGradients
from kinsight.kernel import GradientKernel


class FirstPosition(nn.Module):
    """Reads one of many positions: what reaches the head is a small part of a large tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))[:, 0])


def test_what_is_kept_holds_no_more_than_it_counts() -> None:
    kernel = GradientKernel(FirstPosition(), parameters=lambda name: name.startswith("head"))
    captured = kernel.gradients(torch.randn(6, 50, 4))
    kept = captured.compact(is_eager=True)
    sizes = []
    for gradients in (captured, kept):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors_of(gradients)}
        sizes.append(sum(storage.nbytes() for storage in storages.values()))
    assert sizes[0] > 10 * captured.n_bytes
    assert sizes[1] <= 2 * kept.n_bytes
    assert torch.equal(kept.gram(kept), captured.gram(captured))


def tensors_of(gradients: BatchGradients) -> list[Tensor]:
    return [tensor for each in gradients.by_parameter.values() for tensor in each.tensors]


def test_shares_are_no_views_of_each_other() -> None:
    gradients = GradientKernel(nn.Linear(3, 1)).gradients(torch.randn(4, 3))
    shares = gradients.shares(gradients)
    before = shares["weight"].clone()
    shares["bias"].zero_()
    assert torch.equal(shares["weight"], before)

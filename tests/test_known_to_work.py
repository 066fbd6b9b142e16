"""Label suspects on real digits, by a network that has memorized its wrong labels: known to work."""

import pytest
import torch
from torch import nn

import kinsight
from demo.network import convnet
from kinsight.explorer.findings import auroc
from kinsight.sources import load_samples

N = 600


@pytest.mark.slow
def test_wrong_labels_are_found_by_a_network_that_memorized_them() -> None:
    samples = load_samples("mnist5k")
    order = torch.randperm(5000)[:N].tolist()
    batch = samples.take(order)
    truth = batch.targets
    labels = truth.clone()
    wrong = torch.randperm(N)[: N // 10]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (N // 10,))) % 10
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        for rows in torch.randperm(N).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        memorized = (model(batch.inputs[wrong]).argmax(dim=1) == labels[wrong]).float().mean()
    assert float(memorized) > 0.95, "the network has not memorized the wrong labels: this would test nothing"
    found = kinsight.label_suspects(kinsight.GradientKernel(model), kinsight.Samples(batch.inputs, labels))
    is_wrong = labels != truth
    assert auroc(found.all_scores, is_wrong) > 0.93
    first = found.positions[: N // 10]
    assert float(is_wrong[first].float().mean()) > 0.6
    caught = is_wrong[first]
    right = (found.suggested[: N // 10] == truth[first])[caught].float().mean()
    assert float(right) > 0.9

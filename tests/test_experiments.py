"""The machinery of experiments: planted noise is what it says, intervals are Student's, no seed is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import page, records
from experiments.denoising.moved import moved
from experiments.label_errors.planted import planted


@pytest.mark.parametrize("noise", ["symmetric", "confused"])
def test_a_tenth_of_labels_is_wrong(noise: str) -> None:
    data, again = planted("mnist5k", 500, noise, 3), planted("mnist5k", 500, noise, 3)
    assert int(data.is_wrong.sum()) == 50
    assert torch.equal(data.given, again.given)
    assert data.inputs.shape == (500, 1, 28, 28)
    assert 0 <= float(data.inputs.min()) < float(data.inputs.max()) <= 1
    other = planted("mnist5k", 500, noise, 4)
    assert not torch.equal(data.is_wrong, other.is_wrong)


@pytest.mark.parametrize("task", ["rotated", "translated"])
def test_moved_digits_are_moved_by_what_is_said(task: str) -> None:
    data = moved(task, 400, 0)
    assert data.x.shape == (400, 196)
    assert data.truth.shape == (400, 1 if task == "rotated" else 2)
    assert float(data.truth.std()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(data.x[:50], moved(task, 50, 0, is_test=True).x)
    if task == "translated":  # the center of mass follows the offset, against it
        images = data.x.reshape(-1, 14, 14)
        across = (images.sum(dim=1) * torch.arange(14)).sum(dim=1) / images.sum(dim=(1, 2))
        down = (images.sum(dim=2) * torch.arange(14)).sum(dim=1) / images.sum(dim=(1, 2))
        for axis, place in enumerate((across, down)):
            assert float(torch.corrcoef(torch.stack([place, data.truth[:, axis]]))[0, 1]) < -0.9


def test_a_seed_that_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    ran = []

    def run(seed: int) -> dict[str, Any]:
        if seed == 2 and len(ran) < 3:
            ran.append("interrupted")
            raise KeyboardInterrupt
        ran.append(seed)
        return {"value": seed}

    with pytest.raises(KeyboardInterrupt):
        records.run_seeds("question", "setting", range(3), "command", run)
    records.run_seeds("question", "setting", range(3), "command", run)
    assert ran == [0, 1, "interrupted", 2]
    record = json.loads((tmp_path / "question-setting.json").read_text())
    assert [seed["value"] for seed in record["seeds"].values()] == [0, 1, 2]
    assert all(seed["commit"] for seed in record["seeds"].values())


def test_intervals_are_those_of_student() -> None:
    assert page.mean([1.0, 2.0, 3.0]) == "2.0000 ± 2.4843"
    assert page.difference([1.0, 2.0, 3.0], [0.5, 1.4, 2.6]) == "**+0.5000 ± 0.2484**"
    assert page.difference([1.0, 2.0, 3.0], [0.0, 2.4, 3.6]) == "+0.0000 ± 2.1658"
    assert page.difference([1.0], [0.5]) == "+0.5000"

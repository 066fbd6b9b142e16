"""The machinery of experiments: planted noise is what it says, intervals are Student's, no seed is lost."""

import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import marks, records, tables
from experiments.denoising.moved import moved
from experiments.label_errors import __main__ as label_errors
from experiments.label_errors.planted import planted
from experiments.label_errors.settings import Setting
from experiments.label_errors.training import Trained, trained
from experiments.mnist import one_pair, paired, section
from experiments.mnist.arms import ARMS, OwnClass, Source, network
from experiments.mnist.converged import converged
from experiments.mnist.images import Images, few
from experiments.mnist.images import moved as shifted
from experiments.tables import Record

ROOT = Path(__file__).parent.parent


def test_only_runs_need_what_experiments_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    absent = sorted({*extras["experiments"]} - {*extras["dev"]})
    assert "cleanlab" in absent
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "experiments").rglob("*.py"))
    ]
    assert "experiments.label_errors.ways" in modules
    code = (
        f"import importlib, sys; sys.modules.update(dict.fromkeys({absent}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    assert all(seed["commit"] and seed["machine"]["torch"] for seed in record["seeds"].values())


def test_seeds_of_two_processes_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    forgotten: list[int] = []

    def run(seed: int) -> dict[str, Any]:
        if seed == 0:  # another process writes its own meanwhile
            records.run_seeds("question", "setting", [5], "command", run)
        return {"value": seed}

    def forget(seed: int) -> None:
        assert str(seed) in json.loads((tmp_path / "question-setting.json").read_text())["seeds"]
        forgotten.append(seed)

    records.run_seeds("question", "setting", [0, 1], "command", run, forget)
    record = json.loads((tmp_path / "question-setting.json").read_text())
    assert {seed: found["value"] for seed, found in record["seeds"].items()} == {"0": 0, "1": 1, "5": 5}
    assert forgotten == [0, 1]


def test_a_training_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    samples = planted("mnist5k", 128, "symmetric", 0).samples
    whole = trained(samples, 1, max_epochs=6)
    place = tmp_path / "training.pt"
    for max_epochs in (2, 5):
        trained(samples, 1, max_epochs=max_epochs, unfinished=place)
    again = trained(samples, 1, max_epochs=6, unfinished=place)
    assert (whole.epochs, whole.accuracy) == (again.epochs, again.accuracy)
    assert len(whole.networks) == len(again.networks) == 2  # after five epochs, and in the end
    for a, b in zip(whole.networks, again.networks, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_ways_that_are_done_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def some(data: Any, networks: Any, indexes: Path | None) -> Iterator[Any]:
        def score(names: tuple[str, ...]) -> list[torch.Tensor]:
            asked.append(names[0])
            if asked == ["one", "two"]:
                raise KeyboardInterrupt
            return [data.is_wrong.double() for _ in names]

        assert indexes is None
        yield ("one",), lambda: score(("one",))
        yield ("two", "three"), lambda: score(("two", "three"))

    monkeypatch.setattr(label_errors, "ways", some)
    monkeypatch.setattr(label_errors, "UNFINISHED", tmp_path)
    monkeypatch.setattr(label_errors, "trained", lambda samples, seed, unfinished: Trained([], 3, 1.0, 9.0))
    commits = iter(["b", "a"])
    monkeypatch.setattr(label_errors, "commit", lambda: next(commits))
    monkeypatch.setitem(label_errors.SETTINGS, "tiny", Setting("mnist5k", 100, "symmetric", 1, by_index=False))
    with pytest.raises(KeyboardInterrupt):
        label_errors.run("tiny", 0)
    found = label_errors.run("tiny", 0)
    assert asked == ["one", "two", "two"]
    assert {way: (of["auroc"], of["found_0.1"]) for way, of in found["ways"].items()} == {
        "one": (1.0, 1.0), "two": (1.0, 1.0), "three": (1.0, 1.0),
    }  # fmt: skip
    assert found["commits"] == ["a", "b"]
    assert found["seconds"] == pytest.approx(9.0, abs=0.5)
    assert list(tmp_path.iterdir())  # until it is on record
    label_errors.forget("tiny", 0)
    assert not list(tmp_path.iterdir())


def test_where_numbers_come_from() -> None:
    def record(setting: str, seeds: dict[str, Any], processor: str = "cpu") -> dict[str, Any]:
        machine = {"processor": processor, "threads": 1, "torch": "2"}
        return {"command": f"python -m e {setting} --n 3", "machine": machine, "seeds": seeds}

    runs = {"0": {"commit": "b", "seconds": 30.0}, "1": {"commit": "c", "commits": ["a"], "seconds": 60.0}}
    told = tables.provenance(record("one", runs), record("two", runs))
    assert (
        told
        == "`python -m e one --n 3 two --n 3`, seeds 0, 1; commit a, b, c; cpu, 1 thread, torch 2; 45 seconds a seed."
    )
    assert tables.provenance(record("one", runs), record("two", runs, "other")).count("\n\n") == 1
    elsewhere = {"machine": {"processor": "gpu", "threads": 2, "torch": "3"}}
    moved = record("one", {**runs, "2": {"commit": "d", "seconds": 1.0, **elsewhere}})
    assert "cpu, 1 thread, torch 2; gpu, 2 threads, torch 3" in tables.provenance(moved)
    untimed = {**runs, "2": {"commit": "d"}}
    assert tables.provenance(record("one", untimed)).endswith("torch 2.")


def test_intervals_are_those_of_student() -> None:
    assert tables.mean([1.0, 2.0, 3.0]) == "2.0000 ± 2.4841"
    assert tables.difference([1.0, 2.0, 3.0], [0.5, 1.4, 2.6]) == "**+0.5000 ± 0.2484**"
    assert tables.difference([1.0, 2.0, 3.0], [0.0, 2.4, 3.6]) == "+0.0000 ± 2.1656"
    assert tables.difference([0.5, 1.4, 2.6], [1.0, 2.0, 3.0]) == "**-0.5000 ± 0.2484**"
    assert tables.difference([1.0], [0.5]) == "+0.5000"
    assert tables.difference([], []) == "–"


def test_areas_and_steps_of_curves() -> None:
    steps = torch.tensor(one_pair.STEPS, dtype=torch.float64)
    line = (steps / 1026).tolist()
    assert one_pair.area(line) == pytest.approx(float(steps[0] + steps[-1]) / 2 / 1026)
    assert one_pair.steps_to(0.25, line) == pytest.approx(0.25 * 1026)
    assert one_pair.steps_to(0.0, line) == one_pair.STEPS[0]
    assert math.isnan(one_pair.steps_to(0.9, line))


def test_few_labels_are_as_many_of_each_class() -> None:
    images = Images(torch.rand(300, 1, 28, 28), torch.arange(300) % 10)
    some = few(images, 50, 3)
    assert torch.bincount(some.y).tolist() == [5] * 10
    assert not torch.equal(some.x, few(images, 50, 4).x)


def test_images_are_moved_by_no_more_than_is_said() -> None:
    x = torch.zeros(50, 1, 28, 28)
    x[:, :, 14, 14] = 1
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(shifted(x, generator, degrees=0.0, pixels=0.0), x, atol=1e-5, rtol=0)
    moved_by_two = shifted(x, generator, degrees=0.0, pixels=2.0)
    assert float(moved_by_two[:, :, 11:18, 11:18].sum()) == pytest.approx(50, rel=1e-4)
    assert float((moved_by_two - x).abs().amax(dim=(1, 2, 3)).min()) > 0


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_has_a_slope(arm: str) -> None:
    torch.manual_seed(0)
    model, x, y = network(), torch.rand(4, 1, 28, 28), torch.tensor([3, 3, 7, 7])
    generator = torch.Generator().manual_seed(1)
    views = torch.Generator().manual_seed(2)
    source = Source(Images(x, y), x, generator, lambda images: shifted(images, views))
    value = ARMS[arm](model, 0.5, source)(x, y)
    if arm == "baseline":
        assert not value.requires_grad
        return
    value.backward()
    slope = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert bool(torch.isfinite(slope).all())
    assert float(slope.norm()) > 0
    if arm == "released-sign":
        model.zero_grad()
        ARMS["similarity"](model, 0.5, source)(x, y).backward()
        torch.testing.assert_close(
            slope, -torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )


def test_a_class_against_the_mean_of_the_others() -> None:
    scores = torch.tensor([[3.0, 0.0, 1.0], [2.0, 4.0, 6.0]])
    assert OwnClass()(scores, torch.tensor([0, 1])).tolist() == [2.5, 0.0]


def test_arms_are_compared_seed_by_seed() -> None:
    theirs = {"0": 0.1, "1": 0.2, "10": 0.9, "2": 0.3}
    assert paired.ahead({"0": 0.2, "1": 0.3, "2": 0.4}, theirs) == tables.difference([0.2, 0.3, 0.4], [0.1, 0.2, 0.3])
    assert paired.ahead({"0": 0.2, "1": 0.3, "2": 0.5}, theirs).startswith("+0.1333")


def test_which_arms_help_is_said_as_far_as_intervals_say() -> None:
    told = paired.does_it_help(
        "Area", {"a": [0.1, 0.11, 0.12], "b": [-0.1, -0.11, -0.12], "c": [0.1, -0.1, 0.0], "d": [0.3]}
    )
    assert told.endswith("More: a. Less: b. No difference shown in: c; d.")
    tuned = {
        arm: {"seeds": {"0": {"areas": {f"{weight:g}": sign * weight for weight in one_pair.WEIGHTS}}}}
        for arm, sign in (("similarity", -1), ("features", 1))
    }
    assert list(section._at_the_edge(tuned)) == [
        "The weight that is best for similarity, 0.03, is the smallest that was tried.",
        "The weight that is best for features, 1, is the largest that was tried.",
    ]
    assert "features" in next(section._missing({"baseline": {}, "similarity": {}}, tuned))


def test_arms_that_were_trained_to_the_end_are_told_of() -> None:
    def record(*last: float, rate: float = 0.003, weight: float = 0.1) -> dict[str, Any]:
        machine = {"processor": "cpu", "threads": 1, "torch": "2"}
        runs = {
            str(seed): {"commit": "a", "rate": rate, "weight": weight, "accuracies": [0.1, each - 0.01, each]}
            for seed, each in enumerate(last)
        }
        return {"command": "python -m e", "machine": machine, "seeds": runs}

    tuning = {"seeds": {"1000": {"accuracies": {"0.001 0.03": 0.1, "0.003 0.1": 0.3, "0.003 0.3": 0.2}}}}
    records = {
        "digits-baseline": record(0.98, 0.981, 0.982, weight=0.0), "digits-similarity": record(0.97, 0.9711, 0.9719),
        "digits-augmentation-pairs": record(0.983, 0.983, 0.984), "digits-pi-model": record(0.983, 0.9841, 0.985),
        "digits-tuning-similarity": tuning,
    }  # fmt: skip
    head, rows, told, missing, _ = converged("digits", records)
    assert "2,400 steps" in " ".join(head.split())
    assert "with 2 seeds of its own" in " ".join(head.split())
    assert "| similarity | 0.003 | 0.1 | 3 | 96.10 ± 0.24 % | 97.10 ± 0.24 % | **-0.0100 ± 0.0002** |" in rows
    assert told == (
        "Accuracy, beside the baseline. More: augmentation-pairs; pi-model. Less: similarity. augmentation-pairs "
        "beside pi-model: -0.0007 ± 0.0015. Best at the largest rate that was tried: similarity (0.003)."
    )
    assert missing == "Yet to be run: released-sign, features, gradient-norm, random-pairs."
    assert list(converged("digits", {"digits-similarity": record(0.5)})) == []


def test_marks_of_seeds_that_are_missing_are_so_far() -> None:
    def ways(ours: float) -> dict[str, Any]:
        of = {"auroc": ours, "found_0.1": ours, "found_0.12": ours, "found_0.2": 1.0}
        return {"ways": {"kinsight, four checkpoints": of, "loss value": {**dict.fromkeys(of, 0.9), "found_0.2": 1.0}}}

    record = {"setting": "fashion-10000-confused", "seeds": {"0": ways(0.95), "1": ways(0.951), "2": ways(0.952)}}
    found = [(mark[1].partition(" ahead")[0], mark[3]) for mark in marks.of_label_errors([record])]
    assert found == [
        ("AUROC", "met, so far"),
        ("errors in the first 10%", "met, so far"), ("errors in the first 12%", "met, so far"),
        ("errors in the first 20%", "NOT met, so far"),
        ("intervals of the differences in AUROC above 0", "met, so far"),
    ]  # fmt: skip
    record["seeds"] = {str(seed): ways(0.95 + seed / 1000) for seed in range(5)}
    assert {mark[3] for mark in marks.of_label_errors([record])} == {"met", "NOT met"}
    record["seeds"]["5"] = {"ways": {"loss value": {}}}
    with pytest.raises(ValueError, match="seed 5 has other ways than seed 0"):
        list(marks.of_label_errors([record]))


def test_marks_that_are_missed_come_first() -> None:
    def record(setting: str, ratio: float) -> dict[str, Any]:
        seed = {"means_kernel_fixed": {"ratio": ratio}, "predictions": {"ratio": 1.2}, "decomposition_off": 1e-9}
        return {"question": "denoising", "setting": setting, "seeds": {"0": seed}}

    _, text = marks.section([record("fine", 1.09), record("wide-converged", 1.11)])
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [(row[0].removeprefix("| "), row[-1].removesuffix(" |")) for row in rows] == [
        ("wide-converged", "NOT met"), ("wide-converged", "NOT met"),
        ("fine", "met"), ("rotated and translated, all", "met"),
    ]  # fmt: skip


def test_what_a_study_took_is_a_mark_of_its_own() -> None:
    def records(seconds: float, n_seeds: int) -> list[Record]:
        seeds = {str(seed): {"seconds": seconds, "accuracies": [0.9]} for seed in range(n_seeds)}
        names = [f"digits{kind}-{arm}" for kind in ("", "-tuning") for arm in ARMS]
        return [{"setting": name, "seeds": seeds} for name in names]

    found = [list(marks.of_mnist(records(*given)))[-1] for given in ((140.0, 5), (190.0, 5), (140.0, 4))]
    assert [mark[2:] for mark in found] == [
        ("0.8 hours, and 0.8 to tune", "met"), ("1.1 hours, and 1.1 to tune", "NOT met"),
        ("0.6 hours, and 0.6 to tune", "met, so far"),
    ]  # fmt: skip

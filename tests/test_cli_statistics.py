"""The command line on fit, denoising and comparison: what the library says, printed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import kinsight
from kinsight.sources import load_model
from tests.commands import answer, run, write_module

MODULE = """
import torch
from torch import nn

def classes():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

def values():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
"""
QUIET = ("--quiet", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_module(tmp_path, monkeypatch, MODULE)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(tmp_path / "classes.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    np.savez(tmp_path / "values.npz", x=x, y=x[:, 0])
    return tmp_path


def test_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("fit", "shop:classes", "npz:classes.npz", *QUIET)
    found = answer(capsys, *asked)
    data = kinsight.Samples(*(np.load("classes.npz")[name] for name in "xy"))
    truth = kinsight.fit_map(kinsight.GradientKernel(load_model("shop:classes", device="cpu")), data)
    assert [row["regime"] for row in found["rows"]] == list(truth.regimes)
    assert sum(found["regimes"].values()) == 40
    most = max(found["regimes"], key=found["regimes"].get)
    chosen = answer(capsys, *asked, "--regime", most)
    assert [row["id"] for row in chosen["rows"]] == truth.of(most).tolist()
    assert [row["group"] for row in answer(capsys, *asked, "--by-group")["rows"]] == [0, 1]
    nobody = next(regime for regime, n in found["regimes"].items() if not n)
    assert answer(capsys, *asked, "--regime", nobody, "--out", "none.csv")["rows"] == [{"file": "none.csv", "rows": 0}]
    assert (folder / "none.csv").read_text().strip().split(",") == list(found["rows"][0])
    names = [f"lot {place % 3}" for place in range(40)]
    Path("lots.txt").write_text("\n".join(names))
    by_lot = kinsight.fit_map(kinsight.GradientKernel(load_model("shop:classes", device="cpu")), data, groups=names)
    lots = answer(capsys, *asked, "--by-group", "--groups", "lots.txt")["rows"]
    assert [row["group"] for row in lots] == ["lot 0", "lot 1", "lot 2"]
    assert [row["n"] for row in lots] == [row["n"] for row in by_lot.by_group()]
    Path("lots.txt").write_text("lot 0")
    status, _, err = run(capsys, *asked, "--by-group", "--groups", "lots.txt")
    assert status == 2
    assert "40 samples" in err
    status, _, err = run(capsys, *asked, "--by-group", "--regime", most)
    assert status == 2
    assert "--regime is of samples" in err
    status, _, err = run(capsys, *asked, "--regime", "happy")
    assert status == 2
    assert "there are learned, memorized" in err


def test_uncertainty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("uncertainty", "shop:classes", "npz:classes.npz", *QUIET)
    x = np.load("classes.npz")["x"]
    np.savez("queries.npz", x=10 * x[:5])
    kernel = kinsight.GradientKernel(load_model("shop:classes", device="cpu"))
    for more, queries in (((), None), (("--queries", "npz:queries.npz"), 10 * x[:5])):
        found = answer(capsys, *asked, *more)
        truth = kinsight.uncertainty(kernel, x, queries)
        assert found["n_data"] == 40
        assert found["summary"] == truth.summary()
        values = [row["uncertainty"] for row in found["rows"]]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(sorted(truth.uncertainties.tolist(), reverse=True), rel=1e-4)
        assert values[0] == pytest.approx(float(truth.uncertainties[found["rows"][0]["id"]]), rel=1e-4)


def test_uncertainty_of_an_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "index", "shop:values", "npz:values.npz", "--out", "ours", *QUIET)
    x = np.load("values.npz")["x"]
    np.savez("queries.npz", x=10 * x[:5])
    kernel, index = kinsight.GradientKernel(load_model("shop:values", device="cpu")), kinsight.Index("ours")
    model = ("shop:values", "--queries", "npz:queries.npz", "--device", "cpu")
    for more, expected in (((), index.uncertainty()), (model, index.uncertainty(10 * x[:5], kernel=kernel))):
        found = answer(capsys, "uncertainty", *more, "--index", "ours", "--quiet")
        values = [row["uncertainty"] for row in found["rows"]]
        assert values == pytest.approx(sorted(expected.uncertainties.tolist(), reverse=True))
        assert all(row["support_error"] > 0 for row in found["rows"])
    status, _, err = run(capsys, "uncertainty", "shop:values", "--index", "ours", *QUIET)
    assert status == 2
    assert "leave MODEL and DATA out" in err
    status, _, err = run(capsys, "uncertainty", "--queries", "npz:queries.npz", "--index", "ours", *QUIET)
    assert status == 2
    assert "MODEL is needed" in err


def test_counts_around_queries_at_several_thresholds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.load("classes.npz")["x"]
    np.savez("queries.npz", x=x[:5] + 0.1)
    asked = ("density", "shop:classes", "npz:classes.npz", "--queries", "npz:queries.npz", *QUIET)
    kernel = kinsight.GradientKernel(load_model("shop:classes", device="cpu"))
    soft = kinsight.soft_count(kernel, x, x[:5] + 0.1)
    assert [row["id"] for row in answer(capsys, *asked)["rows"]] == soft.order().tolist()
    several = ("--kind", "hard", "--threshold", "0.1", "--threshold", "0.5")
    found, truth = answer(capsys, *asked, *several), kinsight.hard_count(kernel, x, x[:5] + 0.1, thresholds=[0.1, 0.5])
    assert found["thresholds"] == [0.1, 0.5]
    assert [row["count"] for row in found["rows"]] == truth.values[truth.order()].tolist()
    one = answer(capsys, *asked, "--kind", "hard", "--threshold", "0.1")
    assert [row["count"] for row in one["rows"]] == truth.values[truth.order(), 0].tolist()
    build = ("index", "shop:classes", "npz:classes.npz", "--out", "ours", "--dim", "4096", *QUIET)
    answer(capsys, *build)
    of_index = answer(capsys, *asked, *several, "--index", "ours")
    for row in of_index["rows"]:
        for count, error, exact in zip(row["count"], row["error"], truth.values[row["id"]].tolist(), strict=True):
            assert abs(count - exact) <= 4 * error + 1
    status, _, err = run(capsys, "density", "--index", "ours", "--queries", "npz:queries.npz", "--quiet")
    assert status == 2
    assert "MODEL is needed to sketch them" in err


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (("--limit", "3"), "limit"), (("--output", "one_vs_rest"), "output"), (("--dtype", "float64"), "dtype"),
        (("--device", "cpu"), "device"), (("--seed", "1"), "seed"), (("--parameters", "0.*"), "parameters"),
        (("--max-bytes", "1MB"), "max-bytes"), (("--allow-pickle",), "allow-pickle"),
    ],
)  # fmt: skip
def test_what_means_nothing_to_an_index_is_refused(
    more: tuple[str, ...], name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "index", "shop:classes", "npz:classes.npz", "--out", "ours", *QUIET)
    for verb in ("density", "labels", "fit", "neighbors"):
        status, out, err = run(capsys, verb, "--index", "ours", "--quiet", *more)
        assert (status, out) == (2, "")
        assert f"error: --{name} says how a network is asked about data" in err
    status, out, err = run(capsys, "neighbors", "--index", "ours", "--ids", "3", "--quiet", *more)
    assert (status, out) == (2, "")


def test_denoise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("denoise", "shop:values", "npz:values.npz", *QUIET)
    found = answer(capsys, *asked, "--weight-decay", "0.01")
    data = kinsight.Samples(*(np.load("values.npz")[name] for name in "xy"))
    kernel = kinsight.GradientKernel(load_model("shop:values", device="cpu"))
    truth = kinsight.denoise(kernel, data, weight_decay=0.01)
    assert [row["noise_left"] for row in found["rows"]] == pytest.approx(truth.noise_left.tolist(), rel=1e-4)
    assert found["noise"] == pytest.approx(truth.noise, rel=1e-4)
    assert not found["is_credible"]
    assert [check["name"] for check in found["checks"]] == [check.name for check in truth.checks]
    names = [name for name in kernel.parameters if name.endswith("weight")]
    truth = kinsight.denoise(kernel, data, weight_decay=0.01, decayed=names)
    found = answer(capsys, *asked, "--weight-decay", "0.01", "--decayed", "*weight")
    assert [row["noise_left"] for row in found["rows"]] == pytest.approx(truth.noise_left.tolist(), rel=1e-4)
    assert found["noise_error"] == pytest.approx(truth.noise_error, rel=1e-4)
    assert "fits no parameter" in run(capsys, *asked, "--weight-decay", "0.01", "--decayed", "nothing.*")[2]
    assert "pass both" in run(capsys, *asked, "--decayed", "*weight")[2]
    status, out, err = run(capsys, *asked)
    assert status == 0
    assert "warning: stationarity is" in err
    assert out.startswith("id\tprediction\tmean\tshift\tresidual\tfactor\teffective_neighbors\tnoise_left")
    assert run(capsys, "denoise", "shop:classes", "npz:classes.npz", *QUIET)[0] == 2


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("shop:classes", device="cpu")
    for name, scale in (("first", 0.0), ("second", 1e-3), ("third", 2e-3)):
        generator = torch.Generator().manual_seed(1)
        moved = {k: v + scale * torch.randn(v.shape, generator=generator) for k, v in model.state_dict().items()}
        save_file(moved, folder / f"{name}.safetensors")
    weights = [item for name in ("first", "second", "third") for item in ("--with", f"{name}.safetensors")]
    asked = ("compare", "shop:classes", "npz:classes.npz", *weights, "-k", "5", *QUIET)
    found = answer(capsys, *asked)
    assert [(row["first"], row["second"]) for row in found["rows"]] == [
        ("first.safetensors", "second.safetensors"),
        ("first.safetensors", "third.safetensors"),
        ("second.safetensors", "third.safetensors"),
    ]
    assert found["trusted_from"] == "first.safetensors"
    assert found["rows"][0]["neighbors"] > 0.9
    assert (found["n_anchors"], found["n_others"]) == (40, 40)
    to_files = ("--by-sample", "--out", "rows.csv", "--figure", "run.svg", "--n-others", "30")
    samples = answer(capsys, *asked, *to_files)
    rows = [line.split(",") for line in (folder / "rows.csv").read_text().splitlines()]
    assert rows[0] == ["id", "volatility"]
    assert [int(id_) for id_, _ in rows[1:]] == list(range(40))
    assert sum(float(value) for _, value in rows[1:]) / 40 == pytest.approx(samples["mean_volatility"])
    assert samples["mean_volatility_interval"][0] < samples["mean_volatility"]
    assert samples["n_others"] == 30
    assert (folder / "run.svg").read_text().startswith("<svg")
    status, out, err = run(capsys, *asked[: -len(QUIET)], *QUIET[1:])
    assert status == 0
    assert "Neighbors can be trusted from first.safetensors on: the first network that shares" in err
    assert len(out.splitlines()) == 4


def test_denoising_with_sample_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = np.arange(40) % 3
    np.savez("weights.npz", x=weights.astype(np.float32))
    Path("weights.csv").write_text("\n".join(["weight", *map(str, weights)]))
    asked = ("denoise", "shop:values", "npz:values.npz", *QUIET)
    data = kinsight.Samples(*(np.load("values.npz")[name] for name in "xy"))
    truth = kinsight.denoise(kinsight.GradientKernel(load_model("shop:values")), data, sample_weights=weights)
    turned = np.arange(40)[::-1]
    np.savez("turned.npz", x=weights[turned].astype(np.float32), ids=[str(i) for i in turned])
    np.savez("values-by-name.npz", **np.load("values.npz"), ids=[str(i) for i in range(40)])
    for source in ("npz:weights.npz", "csv:weights.csv", "npz:turned.npz"):
        asked = ("denoise", "shop:values", "npz:values-by-name.npz" if "turned" in source else "npz:values.npz", *QUIET)
        found = answer(capsys, *asked, "--sample-weights", source)
        assert [row["factor"] for row in found["rows"]] == pytest.approx(truth.factors.tolist(), rel=1e-4)
    for source, message in (
        ("npz:values.npz", "--sample-weights npz:values.npz: name a file with one number for each sample"),
        ("npz:turned.npz", "--sample-weights npz:turned.npz has ids, and lacks those of 40 of 40 samples, such as 0"),
        ("npz:nowhere.npz", ""),
    ):
        status, _, err = run(capsys, "denoise", "shop:values", "npz:values.npz", *QUIET, "--sample-weights", source)
        assert status == 2
        assert err.startswith(f"error: {message}")


def test_a_report_compares_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("shop:classes")
    for number in range(3):
        save_file(model.state_dict(), f"{number}.safetensors")
        model[0].weight.data += 0.1
    asked = ("report", "shop:classes", "npz:classes.npz", "--with", "0.safetensors", *QUIET)
    answer(capsys, *asked, "--with", "1.safetensors", "--checkpoint", "2.safetensors", "--out", "page.html")
    page = Path("page.html").read_text()
    assert "The last two of 3 networks share" in page
    assert "Agreement with 2.safetensors, the last" in page
    for wrong, message in (
        ((), "--with names checkpoints to compare: name the last one"),
        (("--checkpoint", "0.safetensors"), "Weights are 0.safetensors, 0.safetensors: name each of them once"),
        (
            ("--checkpoint", "2.safetensors", "--limit", "3"),
            "--with compares how checkpoints see the samples, and needs 4",
        ),
    ):
        status, _, err = run(capsys, *asked, *wrong, "--out", "other.html")
        assert status == 2
        assert err.startswith(f"error: {message}")
    assert not Path("other.html").exists()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("a", (), "two or more"), ("aba", (), "name each of them once"),
        ("ab", ("--figure", "run.svg"), "at least three networks"),
        ("abc", ("--figure", "classes.npz"), "is an .svg file"),
        ("abc", ("--figure", "there.svg"), "is there already"),
        ("abc", ("--figure", "none/run.svg"), "there is no folder 'none'"),
    ],
)  # fmt: skip
def test_compare_refuses_before_it_works(
    names: str, options: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of the weights is there: nothing was read yet."""
    (folder / "there.svg").write_text("a picture")
    weights = [item for name in names for item in ("--with", name)]
    status, _, err = run(capsys, "compare", "shop:classes", "npz:classes.npz", *weights, *options, *QUIET)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_labels_of_several_checkpoints_and_conflicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = np.load("classes.npz")
    labels = arrays["y"].copy()
    labels[[3, 8]] = 1 - labels[[3, 8]]
    np.savez("wrong.npz", x=arrays["x"], y=labels)
    data = kinsight.Samples(torch.from_numpy(arrays["x"]), torch.from_numpy(labels))
    kernels = []
    for name in ("early", "late"):
        model = load_model("shop:classes")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        save_file(model.state_dict(), f"{name}.safetensors")
        kernels.append(kinsight.GradientKernel(model))
    asked = ("labels", "shop:classes", "npz:wrong.npz", "--checkpoint", "late.safetensors", *QUIET)
    found = answer(capsys, *asked, "--with", "early.safetensors")
    expected = kinsight.label_suspects(kernels, data)
    assert found["n_networks"] == 2
    assert {3, 8} <= set(expected.ids)
    assert [(row["id"], row["suggested"]) for row in found["rows"]] == list(
        zip(expected.ids, expected.suggested.tolist(), strict=True)
    )
    assert [row["score"] for row in found["rows"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    for name, kernel in zip(("early", "late"), kernels, strict=True):
        kinsight.Index.build(name, kernel, data, dim=512, normalization="flat")
    together = ("labels", "--index", "late", "--quiet")
    sketched = answer(capsys, *together, "--with-index", "early")
    by_index = kinsight.Index("late").label_suspects(others=[kinsight.Index("early")])
    assert sketched["n_networks"] == 2
    assert [row["id"] for row in sketched["rows"]] == list(by_index.ids)
    assert [row["score"] for row in sketched["rows"]] == pytest.approx(by_index.scores.tolist(), abs=1e-4)
    assert answer(capsys, *together)["n_networks"] == 1
    for wrong, message in (
        ((*asked, "--with-index", "early"), "--with-index is beside --index"),
        ((*together, "--with", "early.safetensors"), "--with is of a MODEL"),
    ):
        status, _, err = run(capsys, *wrong)
        assert status == 2
        assert err.startswith(f"error: {message}")
    pairs = answer(capsys, *asked, "--conflicts", "0.8")
    conflicts = kinsight.label_conflicts(kernels[1], data, least=0.8)
    assert [(row["first"], row["second"]) for row in pairs["rows"]] == list(conflicts.ids)
    assert pairs["n_conflicts"] == conflicts.n_conflicts > 0
    assert pairs["summary"] == conflicts.summary()
    few = answer(capsys, *asked, "--conflicts", "0.8", "--top", "1")
    assert few["rows"] == pairs["rows"][:1]
    assert few["n_conflicts"] == pairs["n_conflicts"]
    assert run(capsys, *asked, "--conflicts", "0.8", "--fail-on", "1")[0] == 1
    enough = ("--fail-on", str(conflicts.n_conflicts + 1))
    assert run(capsys, *asked, "--conflicts", "0.8", "--top", "1", *enough)[0] == 0
    assert run(capsys, *asked, "--conflicts", "0.8", "--top", "1", "--fail-on", str(conflicts.n_conflicts))[0] == 1
    for option, value in (
        ("--method", "votes"), ("--power", "2"), ("--threshold", "0.5"), ("--with", "early.safetensors"),
    ):  # fmt: skip
        status, _, err = run(capsys, *asked, "--conflicts", "0.8", option, value)
        assert status == 2
        assert f"error: {option} is of suspected labels" in err


def test_files_of_no_suspects_have_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.load("classes.npz")["x"]
    np.savez("alike.npz", x=x, y=np.zeros(40, np.int64))
    asked = ("labels", "shop:classes", "npz:alike.npz", *QUIET)
    assert answer(capsys, *asked, "--out", "none.csv")["rows"][0]["rows"] == 0
    assert (folder / "none.csv").read_text().strip() == "id,score,given,suggested,supporters"
    answer(capsys, *asked, "--conflicts", "0.9", "--out", "pairs.csv")
    assert (folder / "pairs.csv").read_text().strip() == "first,second,similarity,labels"


@pytest.mark.parametrize(
    "asked",
    [
        ("fit", "shop:classes", "npz:classes.npz"), ("density", "shop:classes", "npz:classes.npz"),
        ("labels", "shop:classes", "npz:classes.npz", "--threshold", "0"),
        ("uncertainty", "shop:classes", "npz:classes.npz"), ("denoise", "shop:values", "npz:values.npz"),
    ],
    ids=lambda asked: asked[0],
)  # fmt: skip
def test_rows_go_to_a_file(asked: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = answer(capsys, *asked, *QUIET)["rows"]
    status, out, err = run(capsys, *asked, *QUIET[1:], "--out", "rows.csv")
    assert status == 0
    assert out.splitlines()[1] == f"rows.csv\t{len(rows)}"
    assert err.strip()  # in words
    lines = (folder / "rows.csv").read_text().splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split(",") == list(rows[0])
    status, _, err = run(capsys, *asked, *QUIET, "--out", "rows.csv")
    assert status == 2
    assert "is there already" in err


def test_fit_of_an_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ("index", "shop:classes", "npz:classes.npz", "--out", "ours", "--normalization", "flat", *QUIET)
    answer(capsys, *build)
    found = answer(capsys, "fit", "--index", "ours", "--quiet")
    expected = kinsight.Index("ours").fit_map()
    assert [row["regime"] for row in found["rows"]] == list(expected.regimes)
    status, _, err = run(capsys, "fit", "shop:classes", "npz:classes.npz", "--index", "ours", *QUIET)
    assert status == 2
    assert "leave MODEL and DATA out" in err


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("there.csv", "is there already"),
        ("rows.json", "end in .parquet or .csv"),
        ("no/rows.csv", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], out: str, reason: str
) -> None:
    (folder / "there.csv").write_text("mine")
    for verb in (("density",), ("fit",), ("labels",), ("denoise",), ("uncertainty",)):
        status, _, err = run(capsys, *verb, "no:model", "npz:nowhere.npz", *QUIET, "--out", out)
        assert status
        assert reason in err
    assert (folder / "there.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--power", "2"), "--power is of the power count"),
        (("--kind", "hard", "--power", "2"), "--power is of the power count"),
        (("--kind", "power", "--threshold", "0.5"), "--threshold is of the hard count"),
    ],
)
def test_options_of_another_count_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], reason: str
) -> None:
    status, _, err = run(capsys, "density", "shop:build", "npz:data.npz", *QUIET, *given)
    assert status
    assert reason in err

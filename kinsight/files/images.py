"""Images: samples from a folder of them, a subfolder a class."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kinsight.errors import EmptyDataError, SourceError
from kinsight.files.numbers import number_in
from kinsight.files.paths import existing
from kinsight.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What those endings stand for; pillow knows others, one of which starts a program to read a file."""

LARGEST_SIZE = 2**14


def read_image_folder(path: str, options: Mapping[str, str], batch_size: int = 64) -> Samples:
    """Samples of a folder of images, float [3 h w] in [0, 1], read from disk when they are asked for.

    Each subfolder is a class, sorted by name; a folder without subfolders gives samples without targets. Ids
    are paths relative to the folder. Files with other endings than `IMAGE_SUFFIXES`, hidden files and folders, and
    __pycache__, are no samples.

    Args:
        path: the folder.
        options: `size`: the shorter side is resized to it and the center cut out, [3 size size]; without it
            all images need the same size. `mean`, `std`: one number, or three with commas; (image - mean) /
            std. `links=follow`: links may lead out of the folder.
        batch_size: of the samples returned.

    Raises:
        SourceError: there is no such folder, or a file or link that cannot be used, named.
        EmptyDataError: there is no image in it.
    """
    root = existing(path, "a folder of images, or of one subfolder a class", is_folder=True)
    size, mean, std = _size_asked_for(options), _per_channel("mean", options, 0.0), _per_channel("std", options, 1.0)
    classes, files = _classes(_Tree(root, follows_links=_follows_links(options)))
    if not files:
        raise EmptyDataError(f"There are no images ({', '.join(IMAGE_SUFFIXES)}) in {str(root)!r}.")
    images = _ImageFiles([file for file, _ in files], size, mean, std)
    return Samples(
        images,
        torch.tensor([label for _, label in files]) if classes else None,
        ids=[_readable(file.relative_to(root)) for file, _ in files],
        class_names=[_readable(folder) for folder in classes] or None,
        preview=images.image,
        batch_size=batch_size,
    )


class _Tree:
    """The images below a folder. Nothing is left out in silence: a link that cannot be followed is an error."""

    def __init__(self, root: Path, *, follows_links: bool) -> None:
        self.root, self.follows_links = root, follows_links
        self.home = root.resolve()

    def images(self, folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
        """The images in a folder and in those below it."""
        here = folder.resolve()
        if here in above or here in self.home.parents or here == self.home:
            raise SourceError(f"{str(folder)!r} is a link that leads back to a folder it is in. Remove it.")
        folders, files = self.entries(folder)
        yield from files
        for below in folders:
            yield from self.images(below, (*above, here))

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the images in a folder, sorted by name."""
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if entry.name.startswith(".") or entry.name == "__pycache__":
                        continue
                    if entry.is_symlink():
                        self._check_link(path)
                    if entry.is_dir():
                        folders.append(path)
                    elif path.suffix.lower() in IMAGE_SUFFIXES:
                        files.append(path)
                        if not entry.is_file():
                            raise SourceError(f"{str(path)!r} is named like an image and is no file. Remove it.")
        except OSError as error:
            raise SourceError(f"{str(folder)!r} cannot be read: {error.strerror or error}.") from error
        return sorted(folders), sorted(files)

    def _check_link(self, link: Path) -> None:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # a circle of links
            raise SourceError(
                f"{str(link)!r} is a link to {os.readlink(link)!r}, which is not there. Mend it, or remove it."
            ) from error
        is_sample = target.is_dir() or link.suffix.lower() in IMAGE_SUFFIXES
        if is_sample and not self.follows_links and not target.is_relative_to(self.home):
            raise SourceError(
                f"{str(link)!r} is a link that leads out of the folder, to {str(target)!r}: what it shows could end up "
                "in a report without having been meant to. If it is meant, add links=follow, as in "
                f"imagefolder:{self.root}?links=follow."
            )


def _classes(tree: _Tree) -> tuple[list[str], list[tuple[Path, int]]]:
    """Names of the classes, and every image with the number of its class; 0 where there are no classes."""
    folders, files = tree.entries(tree.root)
    if folders and files:
        raise SourceError(
            f"{tree.root} holds images ({files[0].name!r}) next to folders ({folders[0].name!r}): whether folders "
            "are classes cannot be told. Move the images into a folder each, or the folders away."
        )
    found = [(file, 0) for file in files]
    for label, folder in enumerate(folders):
        images = sorted(tree.images(folder))
        if not images:
            raise SourceError(f"Class folder {str(folder)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        found += [(file, label) for file in images]
    return [folder.name for folder in folders], found


class _ImageFiles(Dataset[Tensor]):
    def __init__(self, files: Sequence[Path], size: int | None, mean: Tensor, std: Tensor) -> None:
        self.files, self.side, self.mean, self.std = files, size, mean, std
        self.dtype = torch.get_default_dtype()  # of now: what is read later is read alike
        if self.side is None:
            self.size = _size(files[0])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> Tensor:
        pixels = torch.from_numpy(np.array(self.image(position))).permute(2, 0, 1)
        return (pixels.to(self.dtype) / 255 - self.mean) / self.std

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is not read, and of half the size that is refused
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except SourceError:
        raise
    except Image.DecompressionBombError as error:
        raise SourceError(
            f"{str(file)!r} is refused: {str(error).split(',')[0]}. A small file can unpack to any size. If it is "
            "meant, raise PIL.Image.MAX_IMAGE_PIXELS in a function that reads the images, named as pkg.module:factory."
        ) from error
    except Exception as error:  # a damaged file makes pillow raise nearly anything
        raise SourceError(
            f"{str(file)!r} cannot be read as an image ({', '.join(FORMATS)}): {str(error) or type(error).__name__}. "
            "Mend it, or move it out of the folder."
        ) from error


def _readable(name: Any) -> str:
    """A path as text with forward slashes; bytes that are no UTF-8 written out."""
    return os.fsencode(Path(name).as_posix()).decode("utf-8", "backslashreplace")


def _follows_links(options: Mapping[str, str]) -> bool:
    if options.get("links", "follow") != "follow":
        raise SourceError(f"links={options['links']} is unknown; links=follow lets links lead out of the folder.")
    return "links" in options


def _size_asked_for(options: Mapping[str, str]) -> int | None:
    if "size" not in options:
        return None
    text = options["size"]
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= LARGEST_SIZE:
        raise SourceError(f"size={text} is not a number of pixels from 1 to {LARGEST_SIZE}.")
    return int(text)


def _per_channel(name: str, options: Mapping[str, str], default: float) -> Tensor:
    """One number a channel, [3 1 1]."""
    text = options.get(name, str(default))
    values = [number for part in text.split(",") if (number := number_in(part)) is not None]
    is_finite = bool(values) and bool(np.isfinite(values).all())
    n = len(text.split(","))
    if n not in (1, 3) or len(values) != n or not is_finite or (name == "std" and min(values) <= 0):
        raise SourceError(f"{name}={text} has to be one number or three with commas, a std above 0.")
    return torch.tensor(values).expand(3).view(3, 1, 1)

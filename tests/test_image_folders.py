"""Folders of images: classes, sizes and values; an image that cannot be read is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinsight.errors import EmptyDataError, SourceError
from kinsight.sources import load_samples
from tests.sources import everything


def save_image(path: Path, color: tuple[int, int, int] = (255, 128, 0), size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    save_image(folder / "dog" / "2.png", (0, 0, 255))
    save_image(folder / "dog" / "deep" / "3.PNG", (0, 255, 0))
    save_image(folder / "cat" / "1.png", (255, 51, 0))
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    return folder


class TestImageFolder:
    def test_classes_ids_values(self, images: Path):
        samples = load_samples(f"imagefolder:{images}")
        assert samples.ids == ("cat/1.png", "dog/2.png", "dog/deep/3.PNG")
        assert samples.class_names == ("cat", "dog")
        assert samples.targets.tolist() == [0, 1, 1]
        batch = everything(samples)
        assert batch.inputs.shape == (3, 3, 4, 6)
        assert batch.inputs.dtype == torch.get_default_dtype()
        torch.testing.assert_close(batch.inputs[0, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
        assert samples.take([2]).ids == ("dog/deep/3.PNG",)
        assert samples.take([2]).inputs[0, :, 0, 0].tolist() == [0, 1, 0]

    def test_a_flat_folder(self, tmp_path: Path):
        for name in ("b.png", "a.png"):
            save_image(tmp_path / name)
        samples = load_samples(f"imagefolder:{tmp_path}")
        assert samples.ids == ("a.png", "b.png")
        assert samples.targets is None
        assert samples.class_names is None

    def test_size_mean_std(self, images: Path):
        samples = load_samples(f"imagefolder:{images}?size=8&mean=0.5&std=0.5,0.25,1")
        x = everything(samples).inputs
        assert x.shape == (3, 3, 8, 8)
        torch.testing.assert_close(x[0, :, 3, 3], torch.tensor([1.0, -1.2, -0.5]))
        assert samples.preview(0).getpixel((3, 3)) == (255, 51, 0)
        assert samples.preview(0).size == (8, 8)

    def test_the_center_is_cut_out(self, tmp_path: Path):
        stripes = np.zeros((4, 12, 3), np.uint8)
        stripes[:, 4:8] = 255
        Image.fromarray(stripes).save(tmp_path / "a.png")
        x = everything(load_samples(f"imagefolder:{tmp_path}?size=4")).inputs
        assert x.shape == (1, 3, 4, 4)
        assert (x == 1).all()

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str):
        Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(tmp_path / "a.tif")
        x = everything(load_samples(f"imagefolder:{tmp_path}")).inputs
        assert x.shape == (1, 3, 2, 3)
        assert (x == 1).all()

    def test_images_are_read_when_they_are_asked_for(self, images: Path):
        samples = load_samples(f"imagefolder:{images}")
        (images / "dog" / "2.png").write_bytes(b"broken")
        assert len(samples.take([0, 2])) == 2
        with pytest.raises(SourceError, match=r"dog/2.png' cannot be read as an image \(BMP, GIF, .*cannot identify"):
            samples.take([1])

    def test_a_truncated_image(self, tmp_path: Path):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(SourceError, match=r"a.png' cannot be read as an image"):
            load_samples(f"imagefolder:{tmp_path}").take([0])

    def test_sizes_that_differ(self, images: Path):
        save_image(images / "dog" / "1.png", size=(7, 4))
        samples = load_samples(f"imagefolder:{images}")
        with pytest.raises(SourceError, match=r"cat/1.png' is 6 x 4 pixels and .*dog/1.png' is 7 x 4.*\?size=64"):
            everything(samples)

    def test_pixels_of_16_bits(self, tmp_path: Path):
        Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "a.png")
        with pytest.raises(SourceError, match=r"a.png' has pixels of mode 'I;16', more than 8 bits"):
            load_samples(f"imagefolder:{tmp_path}").take([0])

    def test_folders_that_are_not_clear(self, images: Path):
        (images / "empty").mkdir()
        with pytest.raises(SourceError, match=r"Class folder '.*empty' holds no image \(\.bmp"):
            load_samples(f"imagefolder:{images}")
        save_image(images / "a.png")
        with pytest.raises(SourceError, match=r"holds images \('a.png'\) next to folders \('cat'\)"):
            load_samples(f"imagefolder:{images}")

    def test_no_images(self, tmp_path: Path):
        with pytest.raises(EmptyDataError, match=r"There are no images \(\.bmp, .*\) in "):
            load_samples(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("size=big", "size=big is not a number of pixels from 1 to 16384"),
            ("size=0", "size=0 is not a number of pixels from 1 to 16384"),
            ("mean=1,2", "mean=1,2 has to be one number or three"),
            ("mean=x", "mean=x has to be one number or three"),
            ("std=0", "std=0 has to be one number or three with commas, a std above 0"),
        ],
    )
    def test_bad_options(self, images: Path, option: str, message: str):
        with pytest.raises(SourceError, match=message):
            load_samples(f"imagefolder:{images}?{option}")

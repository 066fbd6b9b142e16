"""Files that are damaged, hostile or merely odd are refused with the place, and never read as something else."""

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kinsight.errors import EmptyDataError, InputError, KinsightError, SampleTypeError, SourceError
from kinsight.files import archives
from kinsight.samples import Samples, concatenate
from kinsight.sources import load_samples


def everything(samples: Samples) -> Any:
    return concatenate(list(samples.batches()))


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class TestCsv:
    def load(self, tmp_path: Path, content: str | bytes, options: str = "") -> Samples:
        (tmp_path / "a.csv").write_bytes(content.encode() if isinstance(content, str) else content)
        return load_samples(f"csv:{tmp_path}/a.csv{options}")

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            ("x,café\n1,2\n".encode("latin-1"), "", r"a.csv', line 1 \(byte 0xe9\) is not UTF-8: .*as UTF-8"),
            (b"x,y\n" + b"1,2\n" * 6000 + b"\xff,1\n", "", r"line 6002 \(byte 0xff\) is not UTF-8"),
            ("x,y\n1,2\n".encode("utf-16"), "", r"line 1 \(byte 0xff\) is not UTF-8"),
            ("x,y\n1,2\n".encode("utf-16-le"), "", r"line 1: 'x\\x00' has a NUL byte: .*or one in UTF-16"),
            ("x,y\n1,\0002\n", "", r"line 2, column 'y': '\\x002' is not a finite number"),
            ("x,y\n1,a\0\n", "?target=y", r"line 2: 'a\\x00' has a NUL byte"),
            ("x,y\n1,a\0\n", "?id=y", r"line 2: 'a\\x00' has a NUL byte"),
            ("x,y\n1," + "2" * 150_000, "", r"line 2: field larger than field limit .*double quote that is not closed"),
            ('x,y\n1,2\n"3,4\n5,6\n', "", r"line 4: unexpected end of data. Look for a double quote"),
            ("x\n1e300\n", "", r"line 2, column 'x': 1e\+300 is beyond the range of float32.* become inf"),
            ("x,y\n1,1\n2,-1e39\n", "?target=y", r"line 3, target column 'y': -1e\+39 is beyond the range of float32"),
            ("x\n1_0\n", "", r"line 2, column 'x': '1_0' is not a finite number. Mend .*leave out the col"),
            ("x\n٣\n", "", r"line 2, column 'x': '٣' is not a finite number"),
            ("x,y\n1,1_0\n2,2_0\n", "?target=y", r"line 2, target column 'y': '1_0' looks like a number and is none"),
            ("x,y\n1,+-3\n2,-+4\n", "?target=y", r"line 2, target column 'y': '\+-3' looks like a number and is none"),
            ('x,y\n1,a\n2,"1,5"\n', "?target=y", r"line 3, target column 'y': '1,5' looks like a number and is none"),
            ("x,y\n1,+-3\n2,4\n", "?target=y", r"line 2, target column 'y': '\+-3' stands among 1 numbers in 2 rows"),
            ("x,y\n1,9223372036854775808\n", "?target=y", r"line 2, .* '9223372036854775808' is beyond .* int64"),
            ("x,y\n1," + "9" * 5000, "?target=y", r"line 2, target column 'y': '9{40}\.\.\.' is beyond .* int64"),
            ("x,y\n1," + "9" * 5000, "", r"line 2, column 'y': '9{40}\.\.\.' is not a finite number"),
            ("x,y\n1,2\n\n3\n", "", r"line 4: 1 cells for 2 columns. A cell that holds a comma stands in"),
            ("x;y\n1;2\n", "", r"is separated by ';'; a CSV file with commas is needed"),
            ("x\ty\n1\t2\n", "", r"is separated by '\\t'"),
            (",x\n0,1\n", "", r"column 1 of 2 has no name in the first line.*index=False"),
            ("x,y, x\n1,2,3\n", "", r"more than one column named 'x'"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, tmp_path: Path, content: str | bytes, options: str, message: str):
        with pytest.raises(SourceError, match=message):
            self.load(tmp_path, content, options)

    @pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
    def test_an_empty_file(self, tmp_path: Path, content: str):
        with pytest.raises(EmptyDataError, match=r"a.csv' is empty: it has no header"):
            self.load(tmp_path, content)

    @pytest.mark.parametrize("content", ["x,y", "x,y\n", "x,y\r\n\r\n"])
    def test_a_header_alone(self, tmp_path: Path, content: str):
        with pytest.raises(EmptyDataError, match=r"a.csv' has a header and no rows"):
            self.load(tmp_path, content, "?target=y")

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
    def test_line_ends_and_marks(self, tmp_path: Path, end: str):
        batch = everything(self.load(tmp_path, end.join(["\ufeffx,y", '" 1",2', '"3\n",-.5e1', ""])))
        assert batch.inputs.tolist() == [[1.0, 2.0], [3.0, -5.0]]

    def test_integers_keep_every_digit(self, tmp_path: Path):
        numbers = [2**63 - 1, -(2**63), 7]
        samples = self.load(tmp_path, "x,y\n" + "".join(f"1,{'+' * (n > 0)}{n}\n" for n in numbers), "?target=y")
        assert samples.targets.tolist() == numbers

    @pytest.mark.parametrize("names", [["+", "-"], ["10-20", "20-30"], ["a1", "1a"], ["²", "½"]])
    def test_names_of_classes_that_are_no_numbers(self, tmp_path: Path, names: list[str]):
        samples = self.load(tmp_path, f"x,y\n1,{names[1]}\n2,{names[0]}\n", "?target=y")
        assert samples.class_names == tuple(sorted(names))
        assert [samples.class_names[i] for i in samples.targets] == names[::-1]

    def test_double_precision_holds_what_single_does_not(self, tmp_path: Path, in_double: None):
        assert everything(self.load(tmp_path, "x,y\n1e300,0.1\n")).inputs.tolist() == [[1e300, 0.1]]

    def test_an_option_twice(self, tmp_path: Path):
        with pytest.raises(SourceError, match=r"has the option 'target' twice. Give it once"):
            self.load(tmp_path, "x,y\n1,2\n", "?target=x&target=y")

    def test_a_disk_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def fail(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", fail)
        for suffix in ("csv", "npz"):
            (tmp_path / f"a.{suffix}").touch()
            with pytest.raises(SourceError, match=rf"a.{suffix}' cannot be read.*Permission denied"):
                load_samples(f"{suffix}:{tmp_path}/a.{suffix}")


X = np.ones((2, 2), np.float32)


class TestNpz:
    def load(self, tmp_path: Path, **arrays: Any) -> Samples:
        np.savez(tmp_path / "a.npz", **arrays)
        return load_samples(f"npz:{tmp_path}/a.npz")

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.array([{}, 1])}, r"array 'x', cannot be read: it holds Python objects.*unpickling.*never done"),
            ({"x": X, "y": np.array([{}, 1])}, r"array 'y', cannot be read: it holds Python objects"),
            ({"x": X, "ids": np.array(["a", 1], object)}, r"array 'ids', cannot be read: it holds Python objects"),
            ({"x": np.array(["a", "b"])}, r"array 'x', is of dtype <U1. Inputs are numbers: encode texts"),
            ({"x": np.array([b"a", b"b"])}, r"array 'x', is of dtype \|S1"),
            ({"x": np.array(["2020"], "datetime64[Y]")}, r"array 'x', is of dtype datetime64\[Y\]"),
            ({"x": np.zeros(2, [("a", "f8")])}, r"array 'x', is of dtype \[\('a', '<f8'\)\]"),
            ({"x": X, "y": np.array(["a", "b"])}, r"array 'y', is of dtype <U1. Targets are numbers: save the index"),
            ({"x": X, "y": np.ones(2, complex)}, r"array 'y', is of dtype complex128. Targets are numbers"),
            ({"x": X, "ids": np.array([1.0, 2.0])}, r"array 'ids', is of dtype float64. Ids are integers or texts"),
            ({"x": X, "ids": np.array([True, False])}, r"array 'ids', is of dtype bool"),
            ({"x": X, "ids": np.array([b"a", b"b"])}, r"array 'ids', is of dtype \|S1"),
            ({"x": X, "ids": np.array([["a"], ["b"]])}, r"array 'ids', has the shape \[2, 1\]. \[n\] is needed"),
            ({"x": np.array(3.0)}, r"array 'x', has the shape \[\]. \[n ...\] is needed"),
            ({"x": np.zeros((3, 0))}, r"array 'x', has the shape \[3, 0\]"),
            ({"x": X, "y": np.array(3)}, r"array 'y', has the shape \[\]"),
            ({"x": np.array([[0.0], [1e300]])}, r"'x', sample 1: 1e\+300 is beyond the range of float32.*become inf"),
            ({"x": X, "y": np.array([0.0, -1e39])}, r"'y', sample 1: -1e\+39 is beyond the range of float32"),
            ({"x": np.array([1e300j, 0])}, r"'x', sample 0: 1e\+300j is beyond the range of complex64"),
            ({"x": X, "y": np.array([1, 2**63], np.uint64)}, r"'y', sample 1: 9223372036854775808 is beyond .* int64"),
            ({"x": np.array([[2**64 - 1]], np.uint64)}, r"'x', sample 0: 18446744073709551615 is beyond .* int64"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, tmp_path: Path, arrays: dict[str, Any], message: str):
        with pytest.raises(SourceError, match=rf"a.npz', array {message}" if message[0] == "'" else message):
            self.load(tmp_path, **arrays)

    @pytest.mark.parametrize(
        ("dtype", "read_as"),
        [
            (np.float16, torch.float32), (np.longdouble, torch.float32), (">f8", torch.float32),
            (np.complex128, torch.complex64), (np.clongdouble, torch.complex64), (np.bool_, torch.bool),
            (np.int8, torch.int8), (">i2", torch.int16), (np.uint8, torch.uint8), (np.uint16, torch.int32),
            (">u4", torch.int64), (np.uint64, torch.int64),
        ],
    )  # fmt: skip
    def test_dtypes(self, tmp_path: Path, dtype: Any, read_as: torch.dtype):
        x = np.arange(6).reshape(3, 2).astype(dtype)
        found = everything(self.load(tmp_path, x=np.asfortranarray(x))).inputs
        assert found.dtype == read_as
        assert found.tolist() == x.tolist()

    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.uint64, ">i4"])
    def test_integer_targets(self, tmp_path: Path, dtype: Any):
        targets = self.load(tmp_path, x=X, y=np.array([1, 0], dtype)).targets
        assert targets.dtype == torch.int64
        assert targets.tolist() == [1, 0]

    def test_infinity_that_is_in_the_file_stays(self, tmp_path: Path):
        x = np.array([[np.inf], [-np.inf], [np.nan]])
        np.testing.assert_array_equal(everything(self.load(tmp_path, x=x)).inputs.numpy(), x.astype(np.float32))

    def test_double_precision_holds_what_single_does_not(self, tmp_path: Path, in_double: None):
        assert everything(self.load(tmp_path, x=np.array([[1e300]]))).inputs.item() == 1e300
        wide = np.finfo(np.longdouble).max
        if wide > np.finfo(np.float64).max:  # a longdouble is a double on some machines
            with pytest.raises(SourceError, match=r"array 'x', sample 0: .* is beyond the range of float64"):
                self.load(tmp_path, x=np.array([wide]))

    def test_every_flipped_byte_and_every_length(self, tmp_path: Path):
        np.savez_compressed(tmp_path / "a.npz", x=X)
        content = (tmp_path / "a.npz").read_bytes()
        file = tmp_path / "b.npz"
        n_read, said = 0, []
        for i in range(len(content)):
            flipped = bytearray(content)
            flipped[i] ^= 0xFF
            for damaged in (content[:i], bytes(flipped)):
                file.write_bytes(damaged)
                try:  # of the bytes a few carry nothing: dates, permissions
                    assert np.array_equal(everything(load_samples(f"npz:{file}")).inputs, X)
                    n_read += 1
                except KinsightError as error:
                    said.append(str(error))
        assert all(message.startswith(f"'{file}'") for message in said)
        assert n_read < len(said) / 2

    def test_not_an_archive(self, tmp_path: Path):
        for content, said in ((b"", "it is empty"), (b"hello world", r"it begins with b'hello '")):
            (tmp_path / "a.npz").write_bytes(content)
            with pytest.raises(SourceError, match=rf"cannot be read as an npz archive: {said}. What numpy.savez"):
                load_samples(f"npz:{tmp_path}/a.npz")

    def write(self, tmp_path: Path, header: str, data: bytes = b"", **options: Any) -> str:
        """An archive with one array under a header of one's own."""
        text = header.encode() + b" " * (63 - (10 + len(header)) % 64) + b"\n"
        with zipfile.ZipFile(tmp_path / "a.npz", "w", **options) as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data)
        return f"npz:{tmp_path}/a.npz"

    def test_an_archive_that_unpacks_to_too_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(archives, "MAX_BYTES", 2**20)
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**20 + 1},)}}"
        source = self.write(tmp_path, header, bytes(2**20 + 1), compression=zipfile.ZIP_DEFLATED)
        assert (tmp_path / "a.npz").stat().st_size < 5000
        message = r"a.npz', [\d,]{5} bytes, unpacks to 1,048,577, more than the 1,048,576 that are read into memory"
        with pytest.raises(SourceError, match=message):
            load_samples(source)
        monkeypatch.setattr(archives, "MAX_BYTES", 2**20 + 1)
        assert len(load_samples(source)) == 2**20 + 1

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", r"4,000,000,000,000 bytes"),
            (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70},)}}", r"damaged: a shape of \[11805916"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", r"may be damaged: a shape of \[-1\]"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", r"makes 12 bytes, and there are 4"),
            ("{'descr': '<V0', 'fortran_order': False, 'shape': (3,)}", r"is of dtype \|V0"),
            ("{'descr': 'zzz', 'fortran_order': False, 'shape': (1,)}", r"may be damaged: descr is not a valid dtype"),
            ("{'descr': '<f4', 'shape': (1,)}", r"may be damaged: Header does not contain the correct keys"),
            ("(" * 3000, r"cannot be read as an npz archive; it may be damaged: "),
            ("__import__('os')", r"cannot be read as an npz archive; it may be damaged: malformed node"),
        ],
    )  # fmt: skip
    def test_headers_that_lie(self, tmp_path: Path, header: str, message: str):
        with pytest.raises(SourceError, match=message):
            load_samples(self.write(tmp_path, header, bytes(4)))

    def test_archives_of_other_kinds(self, tmp_path: Path):
        array = io.BytesIO()
        np.save(array, X)
        source = f"npz:{tmp_path}/a.npz"
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", b"no array")
        with pytest.raises(SourceError, match=r"may be damaged: the magic string is not correct"):
            load_samples(source)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", array.getvalue())
            archive.writestr("x", array.getvalue())
        with pytest.raises(SourceError, match=r"holds the arrays 'x', 'x': one named"):
            load_samples(source)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", array.getvalue())
        content = bytearray((tmp_path / "a.npz").read_bytes())
        for flags, method, said in ((1, 0, "is encrypted"), (0, 99, "compression method is not supported")):
            directory = content.find(b"PK\x01\x02")
            content[6] = content[directory + 8] = flags
            content[8] = content[directory + 10] = method
            (tmp_path / "a.npz").write_bytes(content)
            with pytest.raises(SourceError, match=rf"a.npz' cannot be read as an npz archive; it may be .*{said}"):
                load_samples(source)


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("a\0b", r"a\\x00b' does not exist"),
            ("a" * 5000, r"cannot be looked up \(File name too long\)"),
            ("~nobody_of_this_name/a", r"cannot be looked up \(Could not determine home"),
            ("/dev/null", r"'/dev/null' is no file of data"),
        ],
    )
    @pytest.mark.parametrize("scheme", ["csv", "npz", "imagefolder"])
    def test_names_of_nothing(self, scheme: str, path: str, message: str):
        expected = message if scheme != "imagefolder" else message.replace("is no file of data", "is not a folder")
        with pytest.raises(SourceError, match=rf"{expected}.*; .* was looked for"):
            load_samples(f"{scheme}:{path}")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("in/cat/1.png", "in/dog/2.png", "out/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / name)
    return tmp_path / "in"


class TestImageFolder:
    @pytest.mark.parametrize(("link", "target"), [("cat/3.png", "out/3.png"), ("cat/more", "out"), ("owl", "out")])
    def test_links_that_lead_out(self, images: Path, link: str, target: str):
        (images / link).symlink_to(images.parent / target)
        message = (
            rf"{link}' is a link that leads out of the folder, to '.*{target}'.*imagefolder:{images}\?links=follow"
        )
        with pytest.raises(SourceError, match=message):
            load_samples(f"imagefolder:{images}")
        samples = load_samples(f"imagefolder:{images}?links=follow")
        assert len(everything(samples)) == 3
        assert link in {str(Path(name).parent) if "." not in link else name for name in samples.ids}

    def test_links_that_stay_inside(self, images: Path):
        (images / "cat" / "same.png").symlink_to("../dog/2.png")
        (images.parent / "alias").symlink_to(images)
        samples = load_samples(f"imagefolder:{images.parent}/alias")
        assert samples.ids == ("cat/1.png", "cat/same.png", "dog/2.png")

    @pytest.mark.parametrize(("link", "target"), [("cat/gone.png", "nowhere.png"), ("owl", "nowhere"), ("owl", "owl")])
    def test_links_to_nothing(self, images: Path, link: str, target: str):
        (images / link).symlink_to(target)
        with pytest.raises(SourceError, match=rf"{link}' is a link to '{target}', which is not there. Mend it"):
            load_samples(f"imagefolder:{images}")

    @pytest.mark.parametrize("target", ["../cat", "..", "../.."])
    def test_links_in_a_circle(self, images: Path, target: str):
        (images / "cat" / "again").symlink_to(target)
        with pytest.raises(SourceError, match=r"cat/again' is a link that leads back to a folder it is in"):
            load_samples(f"imagefolder:{images}?links=follow")

    def test_links_has_one_value(self, images: Path):
        with pytest.raises(SourceError, match=r"links=no is unknown; links=follow lets links lead out"):
            load_samples(f"imagefolder:{images}?links=no")

    def test_what_is_hidden_or_no_image_is_no_sample(self, images: Path):
        for name in (".git/4.png", "cat/.thumbs/5.png", "cat/._6.png", "cat/notes.txt"):
            (images / name).parent.mkdir(exist_ok=True)
            (images / name).write_bytes(b"")
        assert load_samples(f"imagefolder:{images}").ids == ("cat/1.png", "dog/2.png")

    def test_what_is_no_file(self, images: Path):
        os.mkfifo(images / "cat" / "pipe.png")
        with pytest.raises(SourceError, match=r"pipe.png' is named like an image and is no file"):
            load_samples(f"imagefolder:{images}")

    def test_names_that_are_no_text(self, images: Path):
        name = os.fsdecode(b"\xff.png")
        (images / "cat" / "1.png").rename(images / "cat" / name)
        samples = load_samples(f"imagefolder:{images}")
        assert samples.ids[0] == "cat/\\xff.png"
        assert len(everything(samples)) == 2

    def test_a_decompression_bomb(self, images: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # pillow warns from here on, and refuses from twice that on
        assert len(everything(load_samples(f"imagefolder:{images}"))) == 2
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
        message = r"cat/1.png' is refused: Image size \(6 pixels\) exceeds limit of 4 pixels. A small file can unpack"
        with pytest.raises(SourceError, match=message):
            load_samples(f"imagefolder:{images}")
        with pytest.raises(SourceError, match=message):
            load_samples(f"imagefolder:{images}?size=2").take([0])

    def test_what_starts_another_program_is_not_read(self, images: Path):
        (images / "cat" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n%%EndComments\n")
        with pytest.raises(
            SourceError, match=r"cat/1.png' cannot be read as an image \(BMP, GIF, JPEG, .*cannot identify"
        ):
            everything(load_samples(f"imagefolder:{images}"))

    def test_every_flipped_byte_and_every_length(self, images: Path):
        file = images / "cat" / "1.png"
        content = file.read_bytes()
        said = []
        for i in range(len(content)):
            flipped = bytearray(content)
            flipped[i] ^= 0xFF
            for damaged in (content[:i], bytes(flipped)):
                file.write_bytes(damaged)
                try:
                    assert everything(load_samples(f"imagefolder:{images}")).inputs.shape == (2, 3, 2, 3)
                except SourceError as error:
                    said.append(str(error))
        assert len(said) > len(content)
        assert all("cat/1.png'" in message for message in said)

    @pytest.mark.parametrize("option", ["mean=nan", "mean=1_0", "std=inf", "std=1,-1,1", "mean=1,2,3,4", "mean=,"])
    def test_bad_numbers(self, images: Path, option: str):
        with pytest.raises(SourceError, match=rf"{option} has to be one number or three with commas, a std above 0"):
            load_samples(f"imagefolder:{images}?{option}")

    @pytest.mark.parametrize("size", ["1_0", "-3", "16385", "9" * 5000, "٣"])
    def test_bad_sizes(self, images: Path, size: str):
        with pytest.raises(SourceError, match=rf"size={size} is not a number of pixels from 1 to 16384"):
            load_samples(f"imagefolder:{images}?size={size}")


def test_arrays_wider_than_torch_has():
    with pytest.raises(
        SampleTypeError, match=r"dtype (longdouble|float128) has no tensor. Turn it into numbers of 64 bit"
    ):
        Samples(np.ones((2, 2), np.longdouble))
    with pytest.raises(InputError, match=r"a list of 1 int is not: Overflow"):
        Samples(X[:1], [2**63])

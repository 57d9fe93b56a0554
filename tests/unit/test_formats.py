"""Published formats, written small and by hand here, read back exactly; damaged, mislabelled and hostile ones."""

import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from specreg.data.open import find_images
from specreg.data.pickled import read_pickled
from spoilt import Touch, encoded

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = [f"class {index}" for index in range(100)]
BATCHES = [f"data_batch_{index}" for index in range(1, 6)]


def pictures(count: int, side: int, seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def cifar_bytes(images: np.ndarray, *labels: list[int]) -> bytes:
    """Write each image as its labels, then all of red, of green and of blue, each row by row."""
    content = bytearray()
    for image, *given in zip(images, *labels, strict=True):
        content += bytes(given)
        for channel in range(3):
            for row in range(32):
                content += bytes(image[channel, row].tolist())
    return bytes(content)


def python2(values: dict[str, object]) -> bytes:
    """Pickle as CIFAR's authors did, with Python 2 and protocol 2: byte strings, a reconstructed array."""
    out = bytearray(b"\x80\x02}q\x01(")
    for key, value in values.items():
        out += b"U" + bytes([len(key)]) + key.encode()
        if isinstance(value, np.ndarray):
            out += b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
            out += (
                b"(K\x01M" + struct.pack("<H", len(value)) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87R"
            )
            out += b"q\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            out += b"T" + struct.pack("<I", value.nbytes) + value.tobytes() + b"tb"
        elif isinstance(value, str):
            out += b"U" + bytes([len(value)]) + value.encode()
        else:
            assert isinstance(value, list)
            out += b"]q\x05("
            for item in value:
                out += b"K" + bytes([item]) if isinstance(item, int) else b"U" + bytes([len(item)]) + item.encode()
            out += b"e"
    return bytes(out + b"u.")


def python3(values: dict[str, object]) -> bytes:
    return pickle.dumps({key.encode(): value for key, value in values.items()}, protocol=4)


class Set:
    """What was written: images and labels of each part."""

    def __init__(self, classes: int, side: int = 32, channels: int = 3) -> None:
        self.images = {"train": pictures(10, side, 0, channels), "test": pictures(3, side, 1, channels)}
        self.labels = {
            "train": [(7 * index + 3) % classes for index in range(10)],
            "test": [0, classes - 1, classes // 2],
        }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def cifar10_binary(folder: Path) -> tuple[Path, Set]:
    made = Set(10)
    train, labels = made.images["train"], made.labels["train"]
    files = {
        f"{name}.bin": cifar_bytes(train[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2])
        for i, name in enumerate(BATCHES)
    }
    files["test_batch.bin"] = cifar_bytes(made.images["test"], made.labels["test"])
    files["batches.meta.txt"] = ("\n".join(TEN) + "\n\n").encode()
    return write(folder, files), made


def cifar10_python(folder: Path, dump=python2) -> tuple[Path, Set]:
    made = Set(10)
    rows = {split: images.reshape(-1, 3072) for split, images in made.images.items()}
    files = {}
    for index, name in enumerate(BATCHES):
        part = slice(2 * index, 2 * index + 2)
        files[name] = dump({"batch_label": name, "labels": made.labels["train"][part], "data": rows["train"][part]})
    files["test_batch"] = dump({"labels": made.labels["test"], "data": rows["test"], "filenames": ["a", "b", "c"]})
    files["batches.meta"] = dump({"label_names": TEN})
    return write(folder, files), made


def cifar100_binary(folder: Path) -> tuple[Path, Set]:
    made = Set(100)
    coarse = {"train": [5] * 10, "test": [19] * 3}
    files = {f"{s}.bin": cifar_bytes(made.images[s], coarse[s], made.labels[s]) for s in ("train", "test")}
    files["fine_label_names.txt"] = "\n".join(HUNDRED).encode()
    return write(folder, files), made


def cifar100_python(folder: Path) -> tuple[Path, Set]:
    made = Set(100)
    files = {
        split: python2(
            {"coarse_labels": [1] * len(images), "fine_labels": made.labels[split], "data": images.reshape(-1, 3072)}
        )
        for split, images in made.images.items()
    }
    files["meta"] = python2({"fine_label_names": HUNDRED})
    return write(folder, files), made


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(folder: Path, ending: str = "", dot: str = "-") -> tuple[Path, Set]:
    made = Set(10, side=28, channels=1)
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = np.array(made.labels[split], dtype=np.uint8)
        files[f"{prefix}-images{dot}idx3-ubyte{ending}"] = idx(made.images[split][:, 0])
        files[f"{prefix}-labels{dot}idx1-ubyte{ending}"] = idx(labels)
    if ending:
        files = {name: gzip.compress(content) for name, content in files.items()}
    return write(folder, files), made


mnist_gz = partial(mnist, ending=".gz")


def stl10_bytes(images: np.ndarray) -> bytes:
    """Write each image's channels column by column."""
    content = bytearray()
    for image in images:
        for channel in range(3):
            for column in range(96):
                content += bytes(image[channel, :, column].tolist())
    return bytes(content)


def stl10(folder: Path) -> tuple[Path, Set]:
    made = Set(10, side=96)
    made.images["unlabeled"], made.labels["unlabeled"] = pictures(4, 96, 2), [0] * 4
    files = {f"{split}_X.bin": stl10_bytes(images) for split, images in made.images.items()}
    for split in ("train", "test"):
        files[f"{split}_y.bin"] = bytes(label + 1 for label in made.labels[split])
    files["class_names.txt"] = "\n".join(TEN).encode()
    return write(folder, files), made


FORMATS = {
    "CIFAR-10 binary": cifar10_binary,
    "CIFAR-10 python": cifar10_python,
    "CIFAR-10 python, saved again": partial(cifar10_python, dump=python3),
    "CIFAR-100 binary": cifar100_binary,
    "CIFAR-100 python": cifar100_python,
    "MNIST": mnist,
    "MNIST, compressed": mnist_gz,
    "MNIST, dots in the names": partial(mnist, dot="."),
    "STL-10": stl10,
}


def archived(folder: Path, mode: str = "w:gz") -> Path:
    path = folder.with_name(folder.name + (".tar.gz" if mode == "w:gz" else ".tar"))
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("form", ["folder", "tar.gz", "tar"])
@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_every_part_is_read_back_exactly(tmp_path, make, form):
    path, made = make(tmp_path / "set")
    if form != "folder":
        path = archived(path, "w:gz" if form == "tar.gz" else "w")
    found = find_images(path)
    assert set(found.splits) == set(made.images)
    for split, images in made.images.items():
        data = found.open(split)
        assert np.array_equal(data.images.numpy(), images)
        assert data.labels.tolist() == made.labels[split]
        assert data.labels.dtype == torch.int64


def test_classes_have_their_names(tmp_path):
    for make, names in (
        (cifar10_binary, TEN),
        (cifar10_python, TEN),
        (cifar100_binary, HUNDRED),
        (cifar100_python, HUNDRED),
        (mnist, list("0123456789")),
        (stl10, TEN),
    ):
        path, _ = make(tmp_path / make.__name__)
        assert list(find_images(path).open().classes) == names


def test_without_the_file_of_names_classes_are_numbered(tmp_path):
    path, _ = cifar10_binary(tmp_path / "set")
    (path / "batches.meta.txt").unlink()
    assert find_images(path).open().classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("make", "below"),
    [(cifar10_python, "cifar-10-batches-py"), (cifar100_python, "cifar-100-python"), (mnist, "MNIST/raw"),
     (stl10, "stl10_binary"), (cifar10_binary, "cifar-10-batches-bin")],
)  # fmt: skip
def test_a_folder_as_torchvision_lays_it_out(tmp_path, make, below):
    _, made = make(tmp_path / below)
    assert np.array_equal(find_images(tmp_path).open().images.numpy(), made.images["train"])


def test_several_data_sets_in_one_folder_are_not_guessed_at(tmp_path):
    cifar10_python(tmp_path / "cifar-10-batches-py")
    mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(ValueError, match=r"several data sets: give one of .*cifar-10-batches-py, .*raw"):
        find_images(tmp_path)
    mixed, _ = cifar10_python(tmp_path / "mixed")
    cifar10_binary(mixed)
    with pytest.raises(ValueError, match="holds CIFAR-10, binary version and CIFAR-10, python version"):
        find_images(mixed)


def test_images_are_resized_upright_and_in_their_colours(tmp_path):
    image = np.zeros((1, 3, 96, 96), dtype=np.uint8)
    image[0, 0, :48] = 200  # the upper half is red,
    image[0, 2, :, :48] = 100  # the left half blue
    path = write(tmp_path / "stl", {"unlabeled_X.bin": stl10_bytes(image)})
    small = find_images(path).open("unlabeled", image_size=48).images[0]
    assert small.shape == (3, 48, 48)
    assert small[:, 5, 40].tolist() == [200, 0, 0]
    assert small[:, 40, 5].tolist() == [0, 0, 100]
    assert small[:, 5, 5].tolist() == [200, 0, 100]
    expected = Image.fromarray(image[0].transpose(1, 2, 0)).resize((48, 48), Image.Resampling.LANCZOS)
    assert np.array_equal(small.numpy(), np.asarray(expected).transpose(2, 0, 1))
    path, made = mnist(tmp_path / "mnist")
    expected = Image.fromarray(made.images["train"][3, 0]).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(find_images(path).open(image_size=16).images[3, 0].numpy(), np.asarray(expected))


def test_stl10_in_several_chunks_and_from_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("specreg.data.stl10._CHUNK", 3)
    path, made = stl10(tmp_path / "set")
    cache = tmp_path / "cache"
    plain = find_images(path).open(image_size=48)
    first = find_images(path).open(image_size=48, cache=cache)
    monkeypatch.setattr("specreg.data.stl10._chunks", None)
    again = find_images(path).open(image_size=48, cache=cache)
    for data in (first, again):
        assert torch.equal(data.images, plain.images)
        assert data.labels.tolist() == made.labels["train"]


def truncated(name: str, count: int = 100):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])


def replaced(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def removed(name: str):
    return lambda folder: (folder / name).unlink()


def byte(name: str, position: int, value: int):
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] = value
        (folder / name).write_bytes(content)

    return change


def batch(**values: object):
    return replaced("data_batch_4", python2(values))


ROWS = np.zeros((2, 3072), np.uint8)
BIN = r"cs\.toronto\.edu/~kriz/cifar\.html"
BAD = {
    "CIFAR-10 truncated": (cifar10_binary, truncated("data_batch_2.bin"), rf"data_batch_2\.bin has 6046 bytes.*{BIN}"),
    "CIFAR-10 empty": (cifar10_binary, replaced("data_batch_1.bin", b""), r"data_batch_1\.bin has 0 bytes"),
    "CIFAR-10 without a batch": (cifar10_binary, removed("data_batch_3.bin"), rf"lacks data_batch_3\.bin: .*{BIN}"),
    "CIFAR-10 mislabelled": (
        cifar10_binary, byte("data_batch_2.bin", 3073, 10), r"data_batch_2\.bin gives image 1 the label 10, .* 10 cl",
    ),
    "CIFAR-10 names": (cifar10_binary, replaced("batches.meta.txt", b"cat\ndog\n"), "names 2 classes instead of 10"),
    "CIFAR-100 wrongly sized": (
        cifar100_binary, replaced("train.bin", bytes(3073)), r"train\.bin has 3073 bytes, no multiple of the 3074",
    ),
    "CIFAR-100 mislabelled": (cifar100_binary, byte("train.bin", 1, 100), "the label 100, .* 100 classes"),
    "python truncated": (cifar10_python, truncated("data_batch_4"), rf"data_batch_4 is no part of CIFAR-10.*{BIN}"),
    "python mislabelled": (cifar10_python, batch(labels=[3, 11], data=ROWS), "data_batch_4 gives image 1 the label 11"),
    "python with names for labels": (cifar10_python, batch(labels=["a", "b"], data=ROWS), "are no integers"),
    "python wrongly sized": (cifar10_python, batch(labels=[3], data=ROWS), r"shape \(2, 3072\) for 1 labels"),
    "python without data": (cifar10_python, batch(labels=[3]), "data_batch_4 has no array 'data', it has labels"),
    "python of CIFAR-100": (
        cifar10_python, batch(fine_labels=[1, 2], data=ROWS), "has no list 'labels', it has data, fine_labels",
    ),
    "python, shape of another size": (
        cifar10_python,
        replaced("data_batch_4", python2({"labels": [1, 2], "data": ROWS}).replace(b"M\x02\x00", b"M\x03\x00")),
        "data_batch_4 is no part of",
    ),
    "python list": (cifar10_python, replaced("data_batch_4", pickle.dumps([1])), "data_batch_4 .*holds no dictionary"),
    "python floats": (
        cifar10_python,
        replaced("data_batch_4", python3({"labels": [1, 2], "data": ROWS.astype("f4")})), "of type 'f4', not of uint8",
    ),
    "MNIST truncated": (mnist, truncated("train-images-idx3-ubyte"), "has 7740 bytes .* instead of 10 x 28 x 28"),
    "MNIST compressed and truncated": (
        mnist_gz, truncated("train-images-idx3-ubyte.gz"), r"train-images-idx3-ubyte\.gz is truncated or damaged",
    ),
    "MNIST mislabelled": (mnist, byte("train-labels-idx1-ubyte", 9, 12), "gives image 1 the label 12"),
    "MNIST without labels": (mnist, removed("train-labels-idx1-ubyte"), r"lacks the labels .* yann\.lecun\.com"),
    "MNIST with other labels": (
        mnist, replaced("train-labels-idx1-ubyte", idx(np.zeros(4, np.uint8))), "10 images .* but 4 labels",
    ),
    "MNIST labels for images": (
        mnist, replaced("train-images-idx3-ubyte", idx(np.zeros(10, np.uint8))), "not begin as an idx file of 3-dim",
    ),
    "MNIST not square": (
        mnist, replaced("train-images-idx3-ubyte", idx(np.zeros((10, 4, 5), np.uint8))), "got 5x4; give an image size",
    ),
    "STL-10 truncated": (stl10, truncated("train_X.bin"), r"train_X\.bin has 276380 bytes, .*cs\.stanford\.edu"),
    "STL-10 mislabelled": (stl10, byte("train_y.bin", 4, 11), "gives image 4 the label 10, .* 10 classes"),
    "STL-10 labelled from 0": (stl10, byte("train_y.bin", 4, 0), "gives image 4 the label -1"),
    "STL-10 without labels": (stl10, removed("train_y.bin"), r"lacks train_y\.bin"),
    "STL-10 with too few labels": (stl10, truncated("train_y.bin", 1), "9 labels for 10 images"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "spoil", "message"), BAD.values(), ids=BAD)
def test_a_spoiled_file_is_one_line_that_names_it(tmp_path, make, spoil, message):
    path, _ = make(tmp_path / "set")
    spoil(path)
    with pytest.raises(ValueError, match=message) as caught:
        find_images(path).open()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def nested(depth: int) -> bytes:
    """A list that holds the last one twice, and so on: 2**depth items to whoever shows them."""
    return b"\x80\x02]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(depth)) + b"."


# In the place of a batch's array: what is not called, imported or compared is no array.
HOSTILE = {
    "a global": (b"cos\nsystem\nU\x04true\x85R", "has no array 'data'"),
    "a call of a string": (b"U\x02osU\x01a\x85R", "has no array 'data'"),
    "a call of a type": (b"cnumpy\nndarray\nK\x04\x85\x85R", "has no array 'data'"),
    "an array without values": (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R", "of type unknown",
    ),
    "a new object": (b"cnumpy\nndarray\n)\x81", "has no array 'data'"),
    "an object elsewhere": (b"U\x01aQ", "has no array 'data'"),
    "a state for a list": (b"]}b", "has no array 'data'"),
    "a state for a constructor": (b"cnumpy\ndtype\nN}U\x0c__defaults__)s\x86b", "has no array 'data'"),
    "a list for a type": (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R(K\x01K\x01\x85]\x89U\x01atb", "of type unknown",
    ),
    "a shape beyond its bytes": (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R"
        b"(K\x01M\x00\x0c\x85cnumpy\ndtype\nU\x02u1\x85R\x89U\x01atb",
        "whose shape is not that of its bytes",
    ),
    "an encoder of another kind": (b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x03rot\x86R", "has no array 'data'"),
    "nesting": (nested(60)[2:-1], "has no array 'data'"),
    "a million lists": (b"]" * 1_000_001, "would take too much memory"),
    "a tuple for a name": (b"NsK\x01\x85N", "has no array 'data'"),
    "itself": (b"h\xff", "has no array 'data'"),
    "a long shape": (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R(K\x01(" + b"J\xff\xff\xff\x7f" * 100_000 +
        b"tcnumpy\ndtype\nU\x02u1\x85R\x89U\x01atb",
        "whose shape is not that of its bytes",
    ),
    "a list for a name of a class": (b"]]\x93", "STACK_GLOBAL requires str"),
    "an empty stack": (b"u", "IndexError in its pickle"),
    "a memo that is not there": (b"h\x07", "Memo value not found"),
    "a negative length": (b"T\xff\xff\xff\xffabc", "ends too early"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_batch_is_refused(tmp_path, value, message):
    path, _ = cifar10_python(tmp_path / "set")
    (path / "data_batch_2").write_bytes(b"\x80\x02}q\xffU\x06labels](K\x01K\x02esU\x04data" + value + b"s.")
    with pytest.raises(ValueError, match=message) as caught:
        find_images(path).open()
    assert "data_batch_2" in str(caught.value)
    assert "\n" not in str(caught.value)


LARGE = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x01"
SHARED = {  # of labels: what is large and there many times
    "bytes in a list": (LARGE + b"0](" + b"h\x01" * 4000 + b"e", "would take too much memory"),
    "a list under many keys": (
        b"](" + b"K\x01" * 100_000 + b"eq\x01s" + b"".join(b"U\x04%04dh\x01s" % i for i in range(3000))
        + b"U\x06labelsh\x01",
        "has no array 'data'",
    ),
    "text of an array under many keys": (
        b"c_codecs\nencode\nX" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"U\x06latin1\x86Rq\x01s"
        + b"".join(b"U\x04%04dh\x01s" % i for i in range(4000)) + b"U\x06labelsh\x01",
        "has no array 'data'",
    ),
    "an integer of many digits": (b"](\x8b" + struct.pack("<i", 2000) + b"\x01" * 2000 + b"e", "more than 64 bits"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "message"), SHARED.values(), ids=SHARED)
def test_what_a_batch_shares_is_not_made_many_times(tmp_path, value, message):
    path, _ = cifar10_python(tmp_path / "set")
    content = b"\x80\x02}U\x06labels" + value + b"s."
    (path / "data_batch_2").write_bytes(content)
    peak, said = read_peak(path, message)
    assert peak < (80 << 20) + 2 * len(content)
    assert "data_batch_2" in said
    assert len(said) < 600


@pytest.mark.parametrize(
    "shown",
    [nested(60)[2:-1], b"(" * 50 + b"U\x01a" + b"t" * 50, b"U\x01a" + b"q\x00h\x00\x86" * 60, b"K\x07", b"}", b"N"],
)
def test_names_of_classes_are_strings(tmp_path, shown):
    path, _ = cifar10_python(tmp_path / "set")
    names = b"(" + b"".join(b"U\x01a" for _ in range(9)) + shown + b"e"
    (path / "batches.meta").write_bytes(b"\x80\x02}U\x0blabel_names]" + names + b"s.")
    with pytest.raises(ValueError, match=r"batches\.meta (is no part of|has names of classes that)") as caught:
        find_images(path).open()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_batches_of_every_protocol_that_holds_arrays_are_read(tmp_path, protocol):
    path, _ = cifar10_python(tmp_path / "set")
    expected = find_images(path).open().images
    for file in path.glob("data_batch_*"):
        values = read_pickled(file.read_bytes(), ("data", "labels"))
        file.write_bytes(pickle.dumps(values, protocol=protocol))
    assert torch.equal(find_images(path).open().images, expected)


def test_names_of_classes_may_be_bytes(tmp_path):
    path, _ = cifar10_python(tmp_path / "set")
    (path / "batches.meta").write_bytes(python3({"label_names": [name.encode() for name in TEN]}))
    assert list(find_images(path).open().classes) == TEN


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_batch_is_ever_run(tmp_path, protocol):
    path, _ = cifar10_python(tmp_path / "set")
    made = tmp_path / "made"
    content = pickle.dumps({"labels": Touch(made), "data": ROWS}, protocol=protocol)
    (path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1"):
        find_images(path).open()
    assert not made.exists()


def torn(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_torn_archive_is_named(tmp_path):
    path = torn(archived(cifar10_binary(tmp_path / "cifar")[0]))
    with pytest.raises(ValueError, match=r"cifar\.tar\.gz is a truncated or damaged archive") as caught:
        find_images(path).open()
    assert "\n" not in str(caught.value)
    (tmp_path / "page.tar.gz").write_text("<html>moved</html>")
    with pytest.raises(ValueError, match=r"page\.tar\.gz is a truncated or damaged archive"):
        find_images(tmp_path / "page.tar.gz")


@pytest.mark.parametrize("ending", ["xz", "bz2"])
@pytest.mark.parametrize("damage", [lambda path: path, torn])
def test_an_archive_compressed_by_anything_but_gzip_asks_to_be_unpacked(tmp_path, ending, damage):
    path = tmp_path / f"cifar.tar.{ending}"
    with tarfile.open(path, f"w:{ending}") as archive:
        archive.add(cifar10_binary(tmp_path / "set")[0], "set")
    with pytest.raises(ValueError, match=rf"cifar\.tar\.{ending} is not read without being unpacked, as .*its folder"):
        find_images(damage(path))
    renamed = path.rename(tmp_path / "cifar.tar")
    with pytest.raises(ValueError, match=r"cifar\.tar is a truncated or damaged archive"):
        find_images(renamed)


def sparse(name: str, size: int) -> bytes:
    """A tar archive with an empty sparse file that claims a size, as GNU tar's old format has it."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386 : 386 + 24] = b"%011o\0%011o\0" % (size, 0)  # one piece, of no bytes, at the end
    header[483 : 483 + 12] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "train-images-idx3-ubyte", "unlabeled_X.bin", "train"])
def test_a_sparse_file_in_an_archive_is_refused(tmp_path, name):
    size = 27648 * 300_000  # 8 GB
    path = write(tmp_path, {"claims.tar": sparse(name, size)}) / "claims.tar"
    with tarfile.open(path) as archive:
        assert [member.size for member in archive] == [size]
    with pytest.raises(ValueError, match=rf"claims\.tar has {name} as a sparse file, which is not read"):
        find_images(path)


def read_peak(path: Path, message: str) -> tuple[int, str]:
    """Return the most bytes of memory that were held until the data were refused, and what was said."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            find_images(path).open()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("specreg.data.files._MOST", 1 << 20)
    path, _ = mnist_gz(tmp_path / "set")
    bomb = gzip.compress(idx(np.zeros((100_000, 28, 28), np.uint8)))
    assert len(bomb) < 1 << 17
    (path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    assert read_peak(path, r"up to train-images-idx3-ubyte\.gz there are more than 1048576 bytes")[0] < 8 << 20
    path, _ = cifar10_binary(tmp_path / "cifar")
    (path / "data_batch_5.bin").write_bytes(bytes(30_000_000))
    assert read_peak(archived(path), r"up to data_batch_5\.bin there are more than")[0] < 8 << 20


def test_stl10_has_no_more_images_than_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("specreg.data.stl10._MOST", 9)
    path, _ = stl10(tmp_path / "set")
    with pytest.raises(ValueError, match=r"train_X\.bin has 10 images, more than 9: of another data set"):
        find_images(path).open()
    assert len(find_images(path).open("unlabeled").images) == 4


def test_an_archive_of_something_else_is_named(tmp_path):
    path = archived(write(tmp_path / "other", {"notes.txt": b"none"}))
    with pytest.raises(ValueError, match=r"an archive of none of CIFAR-10, binary version, .*unpack it"):
        find_images(path)


def test_links_in_an_archive_are_not_followed(tmp_path):
    secret = write(tmp_path / "elsewhere", {"secret": b"\x00" + bytes(3072)}) / "secret"
    path = tmp_path / "cifar.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        content = tarfile.TarInfo("data_batch_1.bin")
        content.size = 3073
        archive.addfile(content, io.BytesIO(bytes(3073)))
    assert find_images(path).splits == ("train",)


def test_a_single_file_of_a_set_asks_for_its_folder(tmp_path):
    path, _ = mnist(tmp_path / "set")
    with pytest.raises(ValueError, match=r"is a part of a data set: give its folder, .*set"):
        find_images(path / "train-images-idx3-ubyte")


def test_a_part_that_is_not_there_names_those_that_are(tmp_path):
    path = write(tmp_path / "stl", {"unlabeled_X.bin": stl10_bytes(pictures(1, 96, 0))})
    with pytest.raises(ValueError, match="has no part 'train': choose 'unlabeled'"):
        find_images(path).open()
    path, _ = mnist(tmp_path / "mnist")
    with pytest.raises(ValueError, match="has no part 'unlabeled': choose 'train' or 'test'"):
        find_images(path).open("unlabeled")


@pytest.mark.parametrize(
    ("name", "advice"),
    [("cifar10", "cs.toronto.edu"), ("stl10_binary", "cs.stanford.edu"), ("MNIST", "yann.lecun.com"),
     ("img_align_celeba", "mmlab"), ("imagenet/train", "image-net.org"), ("mine", "give 'digits', a folder")],
)  # fmt: skip
def test_what_is_not_there_says_where_to_get_it(tmp_path, name, advice):
    with pytest.raises(FileNotFoundError, match=rf"no data at .*{name}: .*{advice}"):
        find_images(tmp_path / name)


def saved_by_hugging_face(folder: Path):
    datasets = pytest.importorskip("datasets")
    made = pictures(5, 8, 3).transpose(0, 2, 3, 1)
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    parts = {
        name: datasets.Dataset.from_dict(
            {"img": [Image.fromarray(image) for image in made[part]], "label": [1, 0, 1, 1, 0][part]}, features=kinds
        )
        for name, part in (("train", slice(0, 3)), ("validation", slice(3, 5)))
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder / "both"))
    parts["train"].save_to_disk(str(folder / "one"))
    return made.transpose(0, 3, 1, 2)


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_data_set_is_read_back(tmp_path):
    made = saved_by_hugging_face(tmp_path)
    found = find_images(tmp_path / "both")
    assert found.splits == ("train", "test")
    data = found.open()
    assert np.array_equal(data.images.numpy(), made[:3])
    assert data.labels.tolist() == [1, 0, 1]
    assert data.classes == ("cat", "dog")
    assert np.array_equal(found.open("test", cache=tmp_path / "cache").images.numpy(), made[3:])
    single = find_images(tmp_path / "one")
    assert single.splits == ("train",)
    assert np.array_equal(single.open().images.numpy(), made[:3])
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"one is not a readable Hugging Face data set") as caught:
        find_images(tmp_path / "one").open()
    assert "\n" not in str(caught.value)


def hugging_face(folder: Path, images: list[bytes | str | None], labels: list[int | None]) -> Path:
    """Save images, encoded or as paths, and labels of cats and dogs, without a look at any of them."""
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict({"img": [None], "label": [0]}, features=kinds).save_to_disk(str(folder))
    rows = [
        {"img": None if image is None else {"bytes" if isinstance(image, bytes) else "path": image}, "label": label}
        for image, label in zip(images, labels, strict=True)
    ]
    table = pyarrow.Table.from_pylist(rows, schema=kinds.arrow_schema)
    (file,) = folder.glob("*.arrow")
    with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder


def grey(value: int) -> bytes:
    return encoded(Image.new("L", (8, 8), value))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 0, -1], "image 2 has the label -1, but there are 2 classes"), ([None, 0, 1], "image 0 has the label None"),
     ([1, 2, 0], "image 1 has the label 2, but there are 2 classes, 0 to 1"), ([1, 0, 1], None), ([-1, -1, -1], None)],
)  # fmt: skip
def test_a_hugging_face_data_set_is_labelled_in_whole_or_not_at_all(tmp_path, labels, message):
    path = hugging_face(tmp_path / "set", [grey(0)] * 3, labels)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            find_images(path).open()
        return
    data = find_images(path).open()
    assert (data.labels.tolist(), data.num_classes) == (([0, 0, 0], 1) if labels[0] < 0 else (labels, 2))


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_data_set_without_one_of_its_images_names_it(tmp_path):
    path = hugging_face(tmp_path / "set", [grey(0), grey(1), None], [0, 1, 0])
    with pytest.raises(ValueError, match="image 2 is missing: leave out its row"):
        find_images(path).open()


@pytest.mark.filterwarnings("ignore")
def test_a_cache_of_a_hugging_face_data_set_knows_when_a_file_elsewhere_changes(tmp_path):
    file, cache = tmp_path / "a.png", tmp_path / "cache"
    file.write_bytes(grey(1))
    path = hugging_face(tmp_path / "set", [str(file), grey(9)], [0, 1])
    assert find_images(path).open(cache=cache).images[:, 0, 0, 0].tolist() == [1, 9]
    file.write_bytes(grey(2))
    os.utime(file, ns=(1, 1))
    assert find_images(path).open(cache=cache).images[:, 0, 0, 0].tolist() == [2, 9]
    file.unlink()
    with pytest.raises(ValueError, match=r"image 0 is not in the data set but at .*a\.png, where there is no file"):
        find_images(path).open(cache=cache)


def test_a_hugging_face_data_set_names_the_package_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = write(tmp_path / "set", {"dataset_info.json": b"{}", "state.json": b"{}"})
    with pytest.raises(ValueError, match="needs another package: pip install datasets"):
        find_images(path).open()
    write(path, {"dataset_dict.json": b"{"})
    with pytest.raises(ValueError, match=r"dataset_dict\.json does not list the data set's parts"):
        find_images(path)

"""Loaders on small files made here, good and bad; streams."""

import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import load_images
from specreg.data.arrays import ImageArrays, decode, encode
from specreg.data.decoding import ImageFiles
from specreg.data.digits import NUM_HELD_OUT, StackedDigits, load_split
from specreg.data.open import find_images
from specreg.data.stacked import StackedImages, stack
from specreg.experiments.config import DataConfig, RecordConfig, Settings
from specreg.experiments.sources import open_checked, open_source


def picture(value: int, side: int = 8, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (side, side), value if mode == "L" else (value, 0, 255 - value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, values in (("cat", (10, 20)), ("dog", (30,))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for value in values:
            picture(value).save(tmp_path / "images" / name / f"{value}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("form", ["folder", "zip", "npz", "npz without a name"])
def test_folder_zip_and_npz_hold_the_same_images(folder, form):
    path = folder
    if form == "zip":
        path = zipped(folder)
    if form.startswith("npz"):
        path = folder.with_suffix(".npz")
        images = np.stack([np.asarray(picture(value)) for value in (10, 20, 30)])
        np.savez(path, labels=np.array([0, 0, 1]), **{"images" if form == "npz" else "arr_0": images})
    data = load_images(path)
    assert data.images.shape == (3, 3, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert data.images[:, 2, 0, 0].tolist() == [245, 235, 225]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.num_classes == 2


def test_image_size_crops_the_middle_and_resizes(tmp_path):
    wide = Image.new("L", (24, 8), 0)
    wide.paste(255, (8, 0, 16, 8))  # the central square is white
    wide.save(tmp_path / "wide.png")
    picture(255, side=32, mode="L").save(tmp_path / "large.png")
    data = load_images(tmp_path, image_size=16)
    assert data.images.shape == (2, 1, 16, 16)
    assert (data.images == 255).all()


# The corner in which an upright white image is black, as each orientation of EXIF stores it: (row, column).
STORED = {1: (0, 0), 2: (0, 7), 3: (7, 7), 4: (7, 0), 5: (0, 0), 6: (7, 0), 7: (7, 7), 8: (0, 7)}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_images_are_upright_whatever_their_exif_says(tmp_path, orientation, ending):
    stored = np.full((8, 8), 255, np.uint8)
    stored[STORED[orientation]] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / f"a.{ending}", exif=exif)
    image = load_images(tmp_path).images[0, 0]
    assert image[:7, :7].float().mean() < 5
    assert image[9:].float().mean() > 250
    assert image[:, 9:].float().mean() > 250


def test_a_picture_on_its_side_has_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg is 8x12; give"):
        load_images(tmp_path)


def test_damaged_exif_does_not_spoil_a_picture(tmp_path):
    picture(7).save(tmp_path / "a.png", exif=b"Exif\0\0 no tags at all")
    assert load_images(tmp_path).images[0, :, 0, 0].tolist() == [7, 0, 248]


def test_what_is_named_like_an_image_is_never_run_as_a_program(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"a\.png is not a readable image \(UnidentifiedImageError\)"):
        load_images(tmp_path)


def test_a_photo_of_a_format_that_is_not_read_is_named(tmp_path):
    picture(7).save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"b\.heic is not a readable image"):
        load_images(tmp_path)


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    picture(7).save(tmp_path / "a.png")
    monkeypatch.setattr("specreg.data.decoding._decoded", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        load_images(tmp_path)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), dtype=np.uint8))
    monkeypatch.setattr("specreg.data.pixels.os.sysconf", lambda name: 1)
    with pytest.raises(ValueError, match=r"a\.npz: 'images' would take 0 GiB of memory, this machine has 0: give"):
        find_images(tmp_path / "a.npz").open()


@pytest.mark.parametrize(("ending", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_grey_images_of_sixteen_bits_are_scaled_to_eight(tmp_path, ending, kind):
    values = np.array([0, 128, 129, 257, 1000, 25700, 32768, 65535] * 8).astype(kind).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    data = load_images(tmp_path)
    assert data.images.shape == (1, 1, 8, 8)
    assert data.images[0, 0, 3].tolist() == [0, 0, 1, 1, 4, 100, 128, 255]
    assert load_images(tmp_path, image_size=4).images.shape == (1, 1, 4, 4)


# Modes that an image file may have; an animation's second image is white.
ENCODED = {
    "palette": ("P", "png", {}),
    "palette with a transparent colour": ("P", "png", {"transparency": 3}),
    "palette with degrees of transparency": ("P", "png", {"transparency": bytes(range(8))}),
    "GIF": ("P", "gif", {}),
    "animated GIF": ("P", "gif", {"save_all": True, "append_images": [Image.new("P", (16, 16), 255)]}),
    "black and white": ("1", "png", {}),
    "black and white TIFF": ("1", "tif", {"compression": "group4"}),
    "grey with transparency": ("LA", "png", {}),
    "colour with transparency": ("RGBA", "png", {}),
    "colour with transparency, WebP": ("RGBA", "webp", {"lossless": True}),
    "four inks": ("CMYK", "tif", {}),
    "four inks, JPEG": ("CMYK", "jpg", {}),
    "brightness and colour": ("YCbCr", "jpg", {}),
}


@pytest.mark.parametrize(("mode", "ending", "options"), ENCODED.values(), ids=ENCODED)
def test_images_are_converted_before_they_are_resized(tmp_path, mode, ending, options):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB")
    image = image.quantize(8) if mode == "P" else Image.fromarray(noise) if mode == "RGBA" else image.convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(noise[:, :, 3]))
    image.save(tmp_path / f"a.{ending}", **options)
    target = "L" if mode in ("1", "LA") else "RGB"
    with warnings.catch_warnings(), Image.open(tmp_path / f"a.{ending}") as opened:
        warnings.simplefilter("ignore")  # about transparency in a palette
        expected = opened.convert(target).resize((7, 7), Image.Resampling.LANCZOS)
    pixels = load_images(tmp_path, image_size=7).images[0]
    assert pixels.shape == (len(target), 7, 7)
    assert np.array_equal(pixels.numpy().transpose(1, 2, 0).squeeze(), np.asarray(expected))
    assert len(pixels.unique()) > 8  # neither a palette's colours nor black and white alone


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.zeros((8, 8), kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif has pixels of 32 bits \(mode [IF]\), .* convert it to 8 or 16 bits"):
        load_images(tmp_path)


def mixed_sizes(folder: Path) -> Path:
    picture(1, side=9).save(folder / "cat" / "odd.png")
    return folder


def not_square(folder: Path) -> Path:
    for file in folder.rglob("*.png"):
        Image.new("RGB", (8, 9)).save(file)
    return folder


def damaged_image(folder: Path) -> Path:
    file = folder / "cat" / "10.png"
    file.write_bytes(file.read_bytes()[:40])
    return folder


def empty(folder: Path) -> Path:
    for file in folder.rglob("*.png"):
        file.unlink()
    return folder


def torn_zip(folder: Path) -> Path:
    path = zipped(folder)
    path.write_bytes(path.read_bytes()[:100])
    return path


def npz(**arrays: np.ndarray):
    def make(folder: Path) -> Path:
        path = folder.with_suffix(".npz")
        np.savez(path, **arrays)
        return path

    return make


def encrypted(path: Path) -> Path:
    """Set the bit that says so in the entries and in the directory."""
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + flags] |= 1
    path.write_bytes(bytes(content))
    return path


def compressed_npz(folder: Path) -> tuple[Path, int]:
    """An array that is compressed, and where its data begin."""
    path = folder.with_suffix(".npz")
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez_compressed(path, images=images)
    name, extra = struct.unpack("<HH", path.read_bytes()[26:30])
    return path, 30 + name + extra


def flipped_npz(folder: Path) -> Path:
    path, start = compressed_npz(folder)
    content = bytearray(path.read_bytes())
    content[start] |= 0b110  # a block of a type that there is not
    path.write_bytes(bytes(content))
    return path


def oddly_compressed_npz(folder: Path) -> Path:
    path, _ = compressed_npz(folder)
    content = bytearray(path.read_bytes())
    for signature, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.find(signature) + method] = 97
    path.write_bytes(bytes(content))
    return path


BAD = [
    (mixed_sizes, r"odd\.png 9x9; give an image size \(--image-size\)"),
    (not_square, r"squares of one size, but cat/10\.png is 8x9; give an image size \(--image-size\)"),
    (damaged_image, r"cat/10\.png is not a readable image"),
    (empty, "holds no images"),
    (torn_zip, r"images\.zip is not a readable zip file"),
    (npz(pictures=np.zeros((2, 8, 8), np.uint8)), "no array 'images', it has pictures"),
    (npz(images=np.zeros((2, 8, 8), np.float32)), r"has to be uint8 .* got float32 \(2, 8, 8\)"),
    (npz(images=np.zeros((2, 3, 8, 8), np.uint8)), r"has to be uint8 of shape"),
    (npz(images=np.zeros((0, 8, 8), np.uint8)), "holds no images"),
    (npz(images=np.zeros((2, 8, 9), np.uint8)), r"squares, got 9x8; give an image size \(--image-size\)"),
    (npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(3, int)), "one integer >= 0 an image"),
    (npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, -1])), "one integer >= 0 an image"),
    (npz(images=np.array([{"a": 1}], dtype=object)), r"images\.npz is not a readable npz file \(.*allow_pickle"),
    (
        lambda folder: encrypted(npz(images=np.zeros((2, 8, 8), np.uint8))(folder)),
        r"images\.npz is not a readable npz file \(.*encrypted",
    ),
    (flipped_npz, r"images\.npz is not a readable npz file \(.*invalid block type"),
    (oddly_compressed_npz, r"images\.npz is not a readable npz file \(.*compression method"),
    (
        npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 200_000_000])),
        "'labels' go up to 200000000, at most 100000 classes",
    ),
    (lambda folder: encrypted(zipped(folder)), r"images\.zip is not a readable zip file \(.*encrypted"),
    (lambda folder: folder / "nowhere.zip", r"there is no file .*nowhere\.zip"),
    (lambda folder: folder / "notes.txt", r"notes\.txt is neither a folder, a \.zip nor a \.npz file"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_data_is_one_line_that_names_it(folder, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_images(make(folder))
    assert "\n" not in str(caught.value)


def test_images_in_a_cache_are_those_in_memory_and_are_decoded_once(folder, tmp_path, monkeypatch):
    for path in (folder, zipped(folder)):
        plain = load_images(path, image_size=4)
        first = load_images(path, image_size=4, cache=tmp_path / "cache")
        with monkeypatch.context() as patch:
            patch.setattr("specreg.data.decoding.ImageFiles._image", None)
            again = load_images(path, image_size=4, cache=tmp_path / "cache")
        for data in (first, again):
            assert torch.equal(data.images, plain.images)
            assert torch.equal(data.labels, plain.labels)
            assert data.classes == plain.classes
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == [".json", ".json", ".npy", ".npy"]
    described = json.loads(next((tmp_path / "cache").glob("*.json")).read_text())
    assert described["shape"] == [3, 3, 4, 4]
    assert described["image_size"] == 4


def test_a_mapped_image_cannot_be_changed_in_its_file(folder, tmp_path):
    data = load_images(folder, cache=tmp_path / "cache")
    data.images.zero_()
    assert load_images(folder, cache=tmp_path / "cache").images.any()


def write(root: Path, files: dict[str, int | bytes]) -> Path:
    """Write grey images of the values, or bytes; a name within a name is a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            picture(content, mode="L").save(root / name)
    return root


def in_form(folder: Path, form: str) -> Path:
    return zipped(folder) if form == "zip" else folder


def labelled(path: Path, split: str = "train") -> dict[int, str]:
    """The class of each image, by the image's value."""
    data = find_images(path).open(split)
    return {
        value: data.classes[label]
        for value, label in zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)
    }


BOTH = pytest.mark.parametrize("form", ["folder", "zip"])


@BOTH
@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ({"cat/0.png": 1, "dog/0.png": 2}, {1: "cat", 2: "dog"}),
        ({"animals/cat/0.png": 1, "animals/dog/0.png": 2, "car/0.png": 3}, {1: "cat", 2: "dog", 3: "car"}),
        ({"n01/images/0.png": 1, "n02/images/0.png": 2}, {1: "n01", 2: "n02"}),
        ({"set/n01/images/0.png": 1, "set/n02/images/0.png": 2}, {1: "n01", 2: "n02"}),
        (
            {"cat/studio/0.png": 1, "cat/street/0.png": 2, "dog/studio/0.png": 3, "eel/0.png": 4},
            {1: "cat", 2: "cat", 3: "dog", 4: "eel"},
        ),
        ({"cat/a/x/0.png": 1, "cat/b/x/0.png": 2, "dog/a/y/0.png": 3}, {1: "cat", 2: "cat", 3: "dog"}),
        ({"0.png": 1, "1.png": 2}, {1: "", 2: ""}),
    ],
)
def test_classes_are_the_last_folders_or_the_first_where_those_repeat(tmp_path, files, classes, form):
    assert labelled(in_form(write(tmp_path / "set", files), form)) == classes


JUNK = (
    ".ipynb_checkpoints/cat-checkpoint.png", "cat/.ipynb_checkpoints/0.png", "cat/.DS_Store", "cat/._0.png",
    "__MACOSX/cat/._0.png", "__MACOSX/0.png", "cat/Thumbs.db", "desktop.ini", "dog/@eaDir/0.png/SYNO.png",
    "$RECYCLE.BIN/9.png", "lost+found/9.png", ".git/a/b.png", ".hidden.png", ".dataset/dataset.json",
)  # fmt: skip


@BOTH
def test_what_is_hidden_or_a_systems_own_is_not_read(tmp_path, form):
    """Least of all as an image: it is damaged here."""
    root = write(tmp_path / ".cache" / "set", {"cat/0.png": 1, "dog/0.png": 2, **dict.fromkeys(JUNK, b"\0")})
    found = find_images(in_form(root, form))
    assert found.splits == ("train",)
    assert found.open().classes == ("cat", "dog")
    assert found.open().labels.tolist() == [0, 1]


@BOTH
def test_folders_of_hidden_files_alone_are_empty(tmp_path, form):
    root = write(tmp_path / "set", {name: 1 for name in JUNK if name.endswith(".png")})
    with pytest.raises(ValueError, match="holds no images"):
        find_images(in_form(root, form)).open()


def test_a_zip_made_by_windows_has_its_classes(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(("cat", "dog", "__MACOSX")):
            picture(value, mode="L").save(tmp_path / "a.png")
            archive.write(tmp_path / "a.png", f"set\\{name}\\0.png")
    assert labelled(path) == {0: "cat", 1: "dog"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["cat/0.png", "cat\\0.png", "cat/./0.png"])
def test_a_zip_with_two_images_of_one_name_is_refused(tmp_path, again):
    path = zipped(write(tmp_path / "set", {"cat/0.png": 1, "dog/0.png": 2}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "set" / "dog" / "0.png", again)
    with pytest.raises(ValueError, match=r"twice: make the zip again"):
        find_images(path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root, list_folder = write(tmp_path / "set", {"cat/0.png": 1, "dog/0.png": 2}), os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"set/dog cannot be read \(Permission denied\): check its permissions"):
        find_images(root)


def linked(root: Path, links: dict[str, str]) -> Path:
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(
    ("links", "classes"),
    [
        ({"set/dog": "../store/dog"}, {1: "cat", 2: "dog"}),
        ({"set/dog": "../a", "a": "b", "b": "store/dog"}, {1: "cat", 2: "dog"}),
        ({"set/dog/2.png": "../../store/dog/0.png"}, {1: "cat", 2: "dog"}),
        ({"set/kitten": "cat", "set/dog": "../store/dog"}, {1: "kitten", 2: "dog"}),
        ({"set/cat/self": ".", "set/cat/root": "..", "set/all": "..", "set/up": "../.."}, {1: "cat"}),
        (
            {"set/cat/dogs": "../dog", "set/dog": "../store/dog", "store/dog/cats": "../../set/cat"},
            {1: "cat", 2: "dog"},
        ),
        ({"set/a": "b", "set/b": "a", "set/c.png": "c.png"}, {1: "cat"}),
        ({"set/.#lock": "nobody@nowhere:1", "set/notes.txt": "nowhere.txt"}, {1: "cat"}),
    ],
    ids=["folder", "link to a link", "file", "second name", "parents", "each other", "circles", "of no images"],
)  # fmt: skip
def test_links_are_followed_but_not_in_circles(tmp_path, links, classes):
    write(tmp_path, {"set/cat/0.png": 1, "store/dog/0.png": 2})
    linked(tmp_path, links)
    data = find_images(tmp_path / "set").open()
    assert labelled(tmp_path / "set") == classes
    assert len(data.images) == len(classes) + ("set/kitten" in links)


@pytest.mark.parametrize("name", ["dog", "cat/1.png"])
def test_a_link_to_nothing_is_named(tmp_path, name):
    root = linked(write(tmp_path / "set", {"cat/0.png": 1}), {name: "/nowhere/at/all"})
    with pytest.raises(ValueError, match=rf"set/{name} is a link to nothing: restore /nowhere/at/all, or remove"):
        find_images(root)


def test_a_cache_knows_when_what_a_link_leads_to_changes(tmp_path):
    write(tmp_path, {"set/cat/0.png": 1, "store/dog/0.png": 2})
    root, cache = linked(tmp_path, {"set/dog": "../store/dog"}) / "set", tmp_path / "cache"
    assert load_images(root, cache=cache).images[:, 0, 0, 0].tolist() == [1, 2]
    picture(3, mode="L").save(tmp_path / "store" / "dog" / "0.png")
    os.utime(tmp_path / "store" / "dog" / "0.png", ns=(1, 1))
    assert load_images(root, cache=cache).images[:, 0, 0, 0].tolist() == [1, 3]


def test_a_link_to_a_folder_in_a_zip_is_named(tmp_path):
    path = zipped(write(tmp_path / "set", {"cat/0.png": 1}))
    info = zipfile.ZipInfo("dog")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "cat")
    with pytest.raises(ValueError, match="dog is a symbolic link: put what it leads to into the zip"):
        find_images(path)


STYLEGAN = {"00000/img00000000.png": 1, "00000/img00000001.png": 2, "00001/img00001000.png": 3}


def described(labels: object, *, below: str = "", **more: object) -> dict[str, int | bytes]:
    content = json.dumps({"labels": labels, **more}).encode()
    return {f"{below}{name}": value for name, value in {**STYLEGAN, "dataset.json": content}.items()}


@BOTH
@pytest.mark.parametrize("below", ["", "set/"])
def test_labels_in_a_file_of_stylegan_are_read(tmp_path, form, below):
    labels = [[name.replace("/", "\\"), label] for name, label in zip(STYLEGAN, (6, 0, 6), strict=True)]
    data = load_images(in_form(write(tmp_path / "set", described(labels[::-1], below=below)), form))
    assert data.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert data.labels.tolist() == [6, 0, 6]
    assert data.classes == tuple("0123456")


@BOTH
def test_images_that_stylegan_left_unlabelled_have_one_class(tmp_path, form):
    data = load_images(in_form(write(tmp_path / "set", described(None)), form))
    assert (data.labels.tolist(), data.num_classes) == ([0, 0, 0], 1)


FIRST, SECOND, THIRD = STYLEGAN
WRONG_LABELS = {
    "a file that is not there": ([["00000/img7.png", 0]], r"labels '00000/img7\.png', which is not there"),
    "a file elsewhere": ([["../a.png", 0]], r"labels '\.\./a\.png', which is not there"),
    "an image without": ([[FIRST, 0], [THIRD, 1]], rf"no label for {SECOND}: label every image, or none"),
    "none": ([], rf"no label for {FIRST}"),
    "a string": ([[FIRST, "6"]], rf"class of {FIRST} must be an integer of at least 0, got '6'"),
    "a truth": ([[FIRST, True]], "must be an integer"),
    "a negative class": ([[FIRST, -1]], "must be an integer of at least 0, got -1"),
    "a large class": ([[FIRST, 10**9]], "must be an integer of at most 99999"),
    "two classes": ([[FIRST, 1], [FIRST, 2]], rf"gives {FIRST} the classes 1 and 2"),
    "a dictionary": ({"cat": 0}, r"has to be null or a list of pairs \[file, class\], got \{'cat'"),
    "no pairs": ([FIRST], r"has to have pairs \[file, class\]"),
    "triples": ([[FIRST, 0, 1]], r"has to have pairs \[file, class\]"),
    "numbers for files": ([[0, 1]], r"has to have pairs \[file, class\]"),
}


@BOTH
@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_that_do_not_fit_are_one_line(tmp_path, form, labels, message):
    path = in_form(write(tmp_path / "set", described(labels)), form)
    with pytest.raises(ValueError, match=message) as caught:
        load_images(path)
    assert "\n" not in str(caught.value)
    assert f"{path}: dataset.json" in str(caught.value)


@BOTH
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_damaged_file_of_labels_is_named(tmp_path, form, content):
    with pytest.raises(ValueError, match=r"dataset\.json is damaged \(\w+\): make it again, or remove it"):
        load_images(in_form(write(tmp_path / "set", {**STYLEGAN, "dataset.json": content}), form))


@pytest.mark.parametrize("name", ["dataset.json", "cat/dataset.json"])
def test_a_dataset_json_of_another_program_is_passed_over(tmp_path, name):
    content = b'{"name": "pets"}' if name == "dataset.json" else b'{"labels": [["0.png", 3]]}'
    assert labelled(write(tmp_path / "set", {"cat/0.png": 1, "dog/0.png": 2, name: content})) == {1: "cat", 2: "dog"}


def touched(folder: Path) -> None:
    file = folder / "cat" / "10.png"
    picture(99).save(file)
    os.utime(file, ns=(1, 1))


def rewritten(ending: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change a file of the cache."""

    def rewrite(folder: Path) -> None:
        file = next(folder.parent.glob(f"cache/*.{ending}"))
        file.write_bytes(change(file.read_bytes()))

    return rewrite


NESTED = b"1" + b"+1" * 4000 + b"\n"  # too deeply for numpy
CHANGES = {
    "an image touched": touched,
    "an image added": lambda folder: picture(99).save(folder / "cat" / "00.png"),
    "images torn": rewritten("npy", lambda content: content[:-10]),
    "images garbled": rewritten("npy", lambda _: b"\x93NUMPY\x01\x00" + len(NESTED).to_bytes(2, "little") + NESTED),
    "no description": lambda folder: next(folder.parent.glob("cache/*.json")).unlink(),
    "description garbled": rewritten("json", lambda _: b"[]"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_cache_is_never_stale(folder, tmp_path, change):
    load_images(folder, cache=tmp_path / "cache")
    change(folder)
    assert torch.equal(load_images(folder, cache=tmp_path / "cache").images, load_images(folder).images)


def test_each_image_size_has_its_own_cache(folder, tmp_path):
    for size in (4, 6, 4):
        assert load_images(folder, image_size=size, cache=tmp_path / "cache").resolution == size


def test_bad_images_leave_no_cache(folder, tmp_path):
    with pytest.raises(ValueError, match="not a readable image"):
        load_images(damaged_image(folder), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("cached", [False, True])
def test_one_coloured_image_makes_all_coloured(tmp_path, cached, monkeypatch):
    monkeypatch.setattr("specreg.data.decoding._CHUNK", 2)
    for index in range(5):
        picture(50 + index, mode="L").save(tmp_path / f"{index}.png")
    picture(7).save(tmp_path / "9.png")
    data = load_images(tmp_path, cache=tmp_path / "cache" if cached else None)
    assert data.images.shape == (6, 3, 8, 8)
    assert data.images[:, :, 0, 0].tolist() == [*([50 + index] * 3 for index in range(5)), [7, 0, 248]]


def test_a_grey_test_part_is_as_coloured_as_the_training_images(tmp_path):
    root = write(tmp_path / "x", {"train/0.png": 1, "train/1.png": 2, "test/0.png": 3})
    picture(7).save(root / "train/0.png")
    settings = Settings(data=DataConfig(str(root)))
    images, _ = open_checked(settings).held_out(settings).dataset.draw(2, torch.Generator())
    assert images.shape == (2, 3, 8, 8)
    assert (images == 3).all()


def test_a_test_part_without_images_gives_way_to_the_next(tmp_path):
    root = write(tmp_path / "x", {"train/a/0.png": 0, "test/labels.csv": b"", "val/a/0.png": 1})
    assert labelled(root, "test") == labelled(root / "train", "test") == {1: "a"}


def parts(root: Path, train: str, test: str) -> Path:
    """Write a training part of cats and dogs and a test part of dogs only."""
    return write(root, {f"{train}/cat/0.png": 0, f"{train}/dog/0.png": 1, f"{test}/dog/0.png": 0}) / train


@pytest.mark.parametrize(
    ("train", "test"), [("pets-train", "pets-test"), ("train", "val"), ("training", "testing"), ("train_64", "test_64")]
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_part_for_testing_beside_the_one_for_training(tmp_path, train, test, form):
    path = parts(tmp_path, train, test)
    if form == "zip":
        path, _ = zipped(path), zipped(tmp_path / test)
    found = find_images(path)
    assert found.splits == ("train", "test")
    assert found.open().labels.tolist() == [0, 1]
    held_out = found.open("test")
    assert held_out.labels.tolist() == [1]  # a dog, as in training
    assert held_out.classes == ("cat", "dog")
    assert find_images(path.with_name(path.name.replace(train, test))).splits == ("train",)


def test_a_folder_beside_without_images_is_no_test_part(tmp_path):
    root = write(tmp_path, {"train/cat/0.png": 0, "train/dog/0.png": 1, "eval/scores.csv": b"0.5"})
    assert find_images(root / "train").splits == ("train",)


def test_pictures_of_runs_are_no_data(tmp_path):
    runs = {"runs/a/samples.png": 5, "runs/a/run.lock": b"", "runs/page.png": 6, "runs/run.lock": b""}
    root = write(tmp_path, {"cat/0.png": 0, "dog/0.png": 1, **runs})
    assert find_images(root).open().classes == ("cat", "dog")


def test_a_test_part_with_a_new_class_is_refused_and_a_flat_one_has_none(tmp_path):
    path = parts(tmp_path, "train", "test")
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "eel")
    with pytest.raises(ValueError, match="the class 'eel', which the training images lack"):
        find_images(path).open("test")
    (tmp_path / "test" / "eel" / "0.png").rename(tmp_path / "test" / "0.png")
    assert find_images(path).open("test").classes == ("",)


@BOTH
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"), ("train", "val"), ("train", "valid"), ("train", "validation"), ("training", "testing"),
        ("TRAIN", "val"), ("training_set", "test_set"), ("seg_train", "seg_test"), ("train2017", "val2017"),
        ("trainset", "testset"), ("set/train", "set/val"), ("trainval", "eval"), ("train", "evaluation"),
        ("Train", "dev"), ("train", "test1"), ("train", "holdout"),
    ],
)  # fmt: skip
def test_parts_within_a_folder_or_zip_are_told_apart(tmp_path, form, train, test):
    root = write(tmp_path / "set", {
        f"{train}/cat/0.png": 1, f"{train}/dog/0.png": 2, f"{test}/dog/0.png": 3, "annotations/0.png": 4,
    })  # fmt: skip
    if "/" in train:
        (root / "annotations" / "0.png").unlink()
    path = in_form(root, form)
    assert find_images(path).splits == ("train", "test")
    assert labelled(path) == {1: "cat", 2: "dog"}
    assert labelled(path, "test") == {3: "dog"}
    assert find_images(path).open("test").classes == ("cat", "dog")


@BOTH
def test_parts_within_each_class_are_told_apart(tmp_path, form):
    files = {"cat/train/0.png": 1, "cat/val/0.png": 2, "dog/train/0.png": 3, "dog/val/0.png": 4, "eel/0.png": 5}
    path = in_form(write(tmp_path / "set", files), form)
    assert labelled(path) == {1: "cat", 3: "dog", 5: "eel"}
    assert labelled(path, "test") == {2: "cat", 4: "dog"}


def test_of_two_parts_for_testing_the_one_called_so_is_taken_and_neither_is_trained_on(tmp_path):
    path = write(tmp_path / "set", {"train/a/0.png": 1, "train/b/0.png": 2, "val/a/0.png": 3, "test/b/0.png": 4})
    assert labelled(path) == {1: "a", 2: "b"}
    assert labelled(path, "test") == {4: "b"}


@pytest.mark.parametrize(
    "names", [("train", "bus"), ("train_station", "test_tube"), ("training", "rest"), ("strained", "stested")]
)
def test_a_class_that_is_called_like_a_part_is_one(tmp_path, names):
    path = write(tmp_path / "set", {f"{name}/0.png": value for value, name in enumerate(names)})
    assert find_images(path).splits == ("train",)
    assert labelled(path) == dict(enumerate(names))


@pytest.mark.parametrize("beside", ["train_masks", "train station", "training_notes"])
def test_what_is_just_called_train_is_the_part_for_training(tmp_path, beside):
    path = write(tmp_path / "set", {"train/0.png": 1, "test/0.png": 2, f"{beside}/0.png": 3})
    assert labelled(path) == {1: ""}
    assert labelled(path, "test") == {2: ""}


@pytest.mark.parametrize("tests", [("testA", "testB"), ("testA",)])
def test_several_parts_for_training_are_not_guessed_at(tmp_path, tests):
    path = write(tmp_path / "set", {f"{part}/0.png": 1 for part in ("trainA", "trainB", *tests)})
    with pytest.raises(ValueError, match="several parts for training, trainA and trainB: give one of them alone"):
        find_images(path)
    assert find_images(path / "trainA").splits == ("train", "test")


@BOTH
@pytest.mark.parametrize("root", ["", "train"])
def test_tiny_imagenet_is_read_and_its_unlabelled_images_are_held_out(tmp_path, root, form):
    files = {f"train/n0{n}/images/n0{n}_0.png": n for n in (1, 2)} | {"val/images/val_0.png": 9}
    path = in_form(write(tmp_path / "tiny-imagenet-200", files), "folder" if root else form) / root
    assert labelled(path) == {1: "n01", 2: "n02"}
    assert labelled(path, "test") == {9: ""}


def test_parts_may_be_labelled_by_files_of_their_own_or_by_one_above(tmp_path):
    pairs = {"train/00000/a.png": 1, "train/00000/b.png": 0, "val/00000/c.png": 1}
    files = {"train/00000/a.png": 10, "train/00000/b.png": 20, "val/00000/c.png": 30}
    one = write(tmp_path / "one", {**files, "dataset.json": json.dumps({"labels": list(pairs.items())}).encode()})
    own = write(tmp_path / "own", files)
    for part in ("train", "val"):
        labels = [[name.removeprefix(f"{part}/"), label] for name, label in pairs.items() if name.startswith(part)]
        write(own, {f"{part}/dataset.json": json.dumps({"labels": labels}).encode()})
    for path in (one, own):
        assert labelled(path) == {10: "1", 20: "0"}
        assert labelled(path, "test") == {30: "1"}
    (own / "val" / "dataset.json").unlink()
    assert labelled(own, "test") == {30: ""}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"train/0.png": 1, "test/cat/0.png": 2}, ""),
        ({"train/train/0.png": 1, "test/test/0.png": 2}, "train"),
        ({"train/images/0.png": 1, "test/a/0.png": 2, "test/b/0.png": 2}, "images"),
    ],
)
def test_a_test_part_has_no_more_classes_than_the_training_images(tmp_path, files, name):
    path = write(tmp_path / "set", files)
    assert labelled(path) == {1: name}
    assert labelled(path, "test") == {2: name}


def test_a_configurations_cache_holds_both_parts_which_are_then_opened_without_decoding(tmp_path, monkeypatch):
    shifts = {"train": 0, "val": 10}
    files = {f"{part}/{name}/0.png": value + shifts[part] for part in shifts for name, value in (("a", 1), ("b", 2))}
    data = DataConfig(str(zipped(write(tmp_path / "set", files))), cache=str(tmp_path / "cache"), image_size=16)

    def both() -> list[ImageArrays]:
        source = open_source(Settings(data=data))
        return [source.dataset, source.held_out(Settings(data=data)).dataset]

    first = both()
    assert len([*(tmp_path / "cache").glob("*.npy")]) == 2
    monkeypatch.setattr("specreg.data.decoding.ImageFiles._image", None)
    for one, other, shift in zip(first, both(), shifts.values(), strict=True):
        assert one.images.shape == (2, 1, 16, 16)
        assert other.images[:, 0, 0, 0].tolist() == [1 + shift, 2 + shift]
        assert torch.equal(one.images, other.images)
        assert (other.labels.tolist(), other.classes) == ([0, 1], ("a", "b"))


def test_a_link_has_the_part_beside_it_and_beside_what_it_leads_to(tmp_path):
    write(tmp_path, {"set/val/a/0.png": 1, "store/a/0.png": 2, "store/b/0.png": 3, "old-train/a/0.png": 4})
    linked(tmp_path, {"set/train": "../store", "new": "old-train"})
    assert labelled(tmp_path / "set" / "train", "test") == {1: "a"}
    assert labelled(tmp_path / "set", "test") == {1: "a"}
    write(tmp_path, {"old-test": b""})
    assert find_images(tmp_path / "new").splits == ("train",)
    (tmp_path / "old-test").unlink()
    write(tmp_path, {"old-test/a/0.png": 5})
    assert labelled(tmp_path / "new", "test") == {5: "a"}


@pytest.mark.parametrize("form", ["folder", "zip", "npz"])
def test_the_side_is_told_without_decoding_more_than_one_image(folder, form, monkeypatch):
    path = npz(images=np.zeros((2, 8, 8), np.uint8))(folder) if form == "npz" else in_form(folder, form)
    seen, read = [], ImageFiles._read
    monkeypatch.setattr(ImageFiles, "_read", lambda self, index: seen.append(index) or read(self, index))
    assert find_images(path).side() == 8
    assert seen == ([] if form == "npz" else [0])
    with pytest.raises(ValueError, match="has no part 'unlabeled'"):
        find_images(path).side("unlabeled")


def test_images_are_encoded_with_noise_below_one_level_and_decoded_without():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = encode(levels, torch.Generator().manual_seed(0))
    assert floats.min() >= -1
    assert floats.max() < 1
    excess = floats - (levels.float() / 128 - 1)
    assert excess.min() >= 0
    assert excess.max() < 1 / 128 + 1e-6
    assert torch.equal(decode(floats), levels)


def grey(classes: int = 10, channels: int = 1) -> ImageArrays:
    """Two images of each class, all of whose pixels tell it: 20 times the class, and 1 more."""
    labels = torch.arange(classes).repeat(2)
    values = 20 * labels + torch.arange(2).repeat_interleave(classes)
    images = values.to(torch.uint8)[:, None, None, None].expand(-1, channels, 4, 4).clone()
    return ImageArrays("grey", images, labels, tuple(map(str, range(classes))))


@pytest.mark.parametrize("size", [None, 50])
def test_stacked_images_show_the_digits_of_their_mode(size):
    source = stack(grey(), size)
    assert (source.resolution, source.channels, source.num_classes) == (4, 3, 1000)
    images, modes = source.draw(400, torch.Generator().manual_seed(0))
    assert images.shape == (400, 3, 4, 4)
    shown = images[:, :, 0, 0].long() // 20
    assert (images == images[:, :, :1, :1]).all()
    assert torch.equal(100 * shown[:, 0] + 10 * shown[:, 1] + shown[:, 2], modes)
    different = len({tuple(row) for row in images[:, :, 0, 0].tolist()})
    assert different > 350 if size is None else 40 <= different <= 50


def test_a_set_of_stacked_images_is_the_same_for_every_run():
    def shown(seed: int) -> set[tuple[int, ...]]:
        images, _ = stack(grey(), 30).draw(2000, torch.Generator().manual_seed(seed))
        return {tuple(row) for row in images[:, :, 0, 0].tolist()}

    assert shown(0) == shown(1)
    assert len(shown(0)) == 30


def test_stacked_digits_draw_what_they_always_drew():
    train, labels, _, _ = load_split()
    index = torch.randint(1500, (6, 3), generator=torch.Generator().manual_seed(3))
    images, modes = StackedDigits().draw(6, torch.Generator().manual_seed(3))
    assert torch.equal(images, train[index])
    assert modes.tolist() == [int("".join(map(str, row))) for row in labels[index].tolist()]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (grey(channels=3), "grey cannot be stacked: its images are not grey, but have 3 channels"),
        (grey(9), "ten classes.* got 9 classes"),
    ],
)
def test_only_grey_images_of_ten_classes_can_be_stacked(source, message):
    with pytest.raises(ValueError, match=message):
        stack(source)


def settings(**data: object) -> Settings:
    return Settings(data=DataConfig(**data))


def digit_folders(root: Path) -> Path:
    for part, shift in (("train", 0), ("test", 5)):
        write(root, {f"{part}/{digit}/0.png": 20 * digit + shift for digit in range(10)})
    return root / "train"


def test_a_configuration_opens_its_part_and_what_is_held_out(tmp_path):
    path = str(digit_folders(tmp_path))
    source = open_source(settings(data=path))
    held_out = source.held_out(settings(data=path))
    assert source.dataset.images[:, 0, 0, 0].tolist() == list(range(0, 200, 20))
    assert held_out.dataset.images[:, 0, 0, 0].tolist() == list(range(5, 205, 20))
    on_test = settings(data=path, data_split="test")
    assert torch.equal(open_source(on_test).dataset.images, held_out.dataset.images)
    assert open_source(on_test).held_out(on_test) is None
    alone = settings(data=str(tmp_path / "train" / "0"))
    assert open_source(alone).held_out(alone) is None
    with pytest.raises(ValueError, match="has no part 'unlabeled': choose 'train' or 'test'"):
        open_source(settings(data=path, data_split="unlabeled"))


def test_held_out_images_have_to_be_like_those_in_training(tmp_path):
    path = digit_folders(tmp_path)
    data = settings(data=str(path))
    source = open_source(data)
    assert source.held_out(data).dataset.resolution == 8
    for file in (tmp_path / "test").rglob("*.png"):
        picture(1, side=16).save(file)
    with pytest.raises(ValueError, match="images are 8x8 with 1 channels, but those for testing 16x16 with 3"):
        source.held_out(data)
    with pytest.raises(ValueError, match="images are 8x8 with 1 channels, but those for testing 16x16 with 3"):
        open_checked(data)  # the training looks at them, whatever it is compared with


@pytest.mark.parametrize("form", ["flat", "npz without labels", "npz with a class more"])
def test_what_is_held_out_has_the_training_images_classes_or_is_not_used(tmp_path, form):
    path, extension = digit_folders(tmp_path), ""
    if form == "flat":
        for file in (tmp_path / "test").rglob("*.png"):
            file.rename(tmp_path / "test" / f"{file.parent.name}.png")
    else:
        extension = ".npz"
        images = np.zeros((11, 8, 8), np.uint8)
        np.savez(tmp_path / "train.npz", images=images[:10], labels=np.arange(10))
        labels = {} if "without" in form else {"labels": np.arange(11)}
        np.savez(tmp_path / "test.npz", images=images, **labels)
    data = {"data": str(path) + extension}
    source = open_source(settings(**data))
    assert source.held_out(settings(**data)) is not None
    assert source.held_out(settings(**data, conditional=True)) is None
    on_test = Settings(data=DataConfig(**data, conditional=True), records=RecordConfig(reference_split="test"))
    for refused in (lambda: source.held_out(on_test), lambda: open_checked(on_test)):
        with pytest.raises(ValueError, match="images for testing lack the classes of the training images") as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_conditional_runs_hold_out_images_of_the_same_classes(tmp_path):
    path = digit_folders(tmp_path)
    data = settings(data=str(path), conditional=True)
    assert open_source(data).held_out(data).dataset.labels.tolist() == list(range(10))
    images = np.zeros((10, 8, 8), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(10))
    np.savez(tmp_path / "test.npz", images=images[:4], labels=np.array([0, 3, 8, 3]))  # none of the last class
    data = settings(data=str(path) + ".npz", conditional=True)
    assert open_source(data).held_out(data).dataset.labels.tolist() == [0, 3, 8, 3]
    data = settings(conditional=True)
    assert open_source(data).held_out(data).dataset.num_classes == 1000


def test_a_configuration_stacks_and_its_held_out_images_are_endless(tmp_path):
    stacked = settings(data=str(digit_folders(tmp_path)), stacked=True, stacked_size=20, image_size=16)
    source = open_source(stacked)
    images, modes = source.dataset.draw(500, torch.Generator().manual_seed(0))
    assert images.shape == (500, 3, 16, 16)
    assert len(modes.unique()) <= 20
    held_out = source.held_out(stacked)
    assert isinstance(held_out.dataset, StackedImages)
    images, modes = held_out.dataset.draw(500, torch.Generator().manual_seed(0))
    assert len(modes.unique()) > 300
    assert (images % 20 == 5).all()


def test_digits_have_both_parts():
    _, _, test, _ = load_split()
    assert torch.equal(open_source(settings()).held_out(settings()).dataset.images, test)
    on_test = settings(data_split="test")
    assert torch.equal(open_source(on_test).dataset.images, test)
    assert open_source(on_test).held_out(on_test) is None
    images, _ = open_source(settings(stacked_size=7)).dataset.draw(200, torch.Generator().manual_seed(0))
    assert len(images.unique(dim=0)) <= 7
    with pytest.raises(ValueError, match="digits have no part 'unlabeled'"):
        open_source(settings(data_split="unlabeled"))


def test_a_size_without_stacking_is_refused(folder):
    with pytest.raises(ValueError, match="give --stacked, too"):
        open_source(settings(data=str(folder), stacked_size=3))


def test_held_out_digits_are_not_in_the_training_set():
    train, _, held_out, _ = load_split()
    assert (len(train), len(held_out)) == (1500, NUM_HELD_OUT)
    known = {bytes(image.numpy().tobytes()) for image in train}
    assert not any(bytes(image.numpy().tobytes()) in known for image in held_out)

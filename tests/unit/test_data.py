"""Loaders on small files made here, good and bad; streams."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from specreg.data.arrays import dequantize, quantize
from specreg.data.digits import NUM_HELD_OUT, StackedDigits, load_split
from specreg.data.images import load_images
from specreg.data.stream import BatchStream


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


@pytest.mark.parametrize("form", ["folder", "zip", "npz"])
def test_folder_zip_and_npz_hold_the_same_images(folder, form):
    path = folder
    if form == "zip":
        path = zipped(folder)
    if form == "npz":
        path = folder.with_suffix(".npz")
        images = np.stack([np.asarray(picture(value)) for value in (10, 20, 30)])
        np.savez(path, images=images, labels=np.array([0, 0, 1]))
    data = load_images(path)
    assert data.images.shape == (3, 3, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert data.images[:, 2, 0, 0].tolist() == [245, 235, 225]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.num_classes == 2


def test_grey_images_have_one_channel(tmp_path):
    picture(7, mode="L").save(tmp_path / "a.png")
    data = load_images(tmp_path)
    assert data.images.shape == (1, 1, 8, 8)
    assert data.num_classes == 1


def test_image_size_crops_the_middle_and_resizes(tmp_path):
    wide = Image.new("L", (24, 8), 0)
    wide.paste(255, (8, 0, 16, 8))  # the central square is white
    wide.save(tmp_path / "wide.png")
    picture(255, side=32, mode="L").save(tmp_path / "large.png")
    data = load_images(tmp_path, image_size=16)
    assert data.images.shape == (2, 1, 16, 16)
    assert (data.images == 255).all()


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


def flipped_zip(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(folder / "cat" / "10.png", "cat/10.png")
    content = bytearray(path.read_bytes())
    content[50] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def zip_of_nothing(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    path.write_bytes(b"")
    return path


def npz(**arrays: np.ndarray):
    def make(folder: Path) -> Path:
        path = folder.with_suffix(".npz")
        np.savez(path, **arrays)
        return path

    return make


def torn_npz(folder: Path) -> Path:
    path = npz(images=np.zeros((2, 8, 8), np.uint8))(folder)
    path.write_bytes(path.read_bytes()[:60])
    return path


def pickled_npz(folder: Path) -> Path:
    return npz(images=np.array([{"a": 1}], dtype=object))(folder)


def missing(folder: Path) -> Path:
    return folder / "nowhere.zip"


def text_file(folder: Path) -> Path:
    return folder / "notes.txt"


BAD = [
    (mixed_sizes, r"odd\.png 9x9; give an image size"),
    (not_square, r"8x9"),
    (damaged_image, r"cat/10\.png is not a readable image"),
    (empty, "holds no images"),
    (torn_zip, r"images\.zip is not a readable zip file"),
    (flipped_zip, r"images\.zip"),
    (zip_of_nothing, r"images\.zip is not a readable zip file"),
    (npz(pictures=np.zeros((2, 8, 8), np.uint8)), "no array 'images', it has pictures"),
    (npz(images=np.zeros((2, 8, 8), np.float32)), r"has to be uint8 .* got float32 \(2, 8, 8\)"),
    (npz(images=np.zeros((2, 3, 8, 8), np.uint8)), r"has to be uint8 of shape"),
    (npz(images=np.zeros((0, 8, 8), np.uint8)), "holds no images"),
    (npz(images=np.zeros((2, 8, 9), np.uint8)), r"squares, got 9x8; give an image size"),
    (npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(3, int)), "one integer >= 0 an image"),
    (npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, -1])), "one integer >= 0 an image"),
    (torn_npz, r"images\.npz is not a readable npz file"),
    (pickled_npz, r"images\.npz"),
    (missing, r"no data at .*nowhere\.zip"),
    (text_file, r"notes\.txt is neither a folder, a \.zip nor a \.npz file"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_data_is_one_line_that_names_it(folder, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_images(make(folder))
    assert "\n" not in str(caught.value)


def test_dequantize_adds_noise_below_one_level_and_quantize_undoes_it():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = dequantize(levels, torch.Generator().manual_seed(0))
    assert floats.min() >= -1
    assert floats.max() < 1
    excess = floats - (levels.float() / 128 - 1)
    assert excess.min() >= 0
    assert excess.max() < 1 / 128 + 1e-6
    assert torch.equal(quantize(floats), levels)


def test_stacked_digits_are_three_digits_and_their_mode():
    train, labels, held_out, _ = load_split()
    assert (len(train), len(held_out)) == (1500, NUM_HELD_OUT)
    images, modes = StackedDigits().draw(50, torch.Generator().manual_seed(0))
    assert images.shape == (50, 3, 8, 8)
    for image, mode in zip(images[:10], modes[:10].tolist(), strict=True):
        for channel, digit in enumerate((mode // 100, mode // 10 % 10, mode % 10)):
            same = (train == image[channel]).flatten(1).all(1)
            assert digit in labels[same].tolist()


def test_held_out_digits_are_not_in_the_training_set():
    train, _, held_out, _ = load_split()
    known = {bytes(image.numpy().tobytes()) for image in train}
    assert not any(bytes(image.numpy().tobytes()) in known for image in held_out)


def test_a_stream_goes_on_where_it_was():
    stream = BatchStream(StackedDigits(), 4, seed=1)
    stream.next()
    state = stream.state_dict()
    expected = [stream.next() for _ in range(3)]
    other = BatchStream(StackedDigits(), 4, seed=2)
    other.load_state_dict(state)
    for images, labels in expected:
        again, same = other.next()
        assert torch.equal(images, again)
        assert torch.equal(labels, same)

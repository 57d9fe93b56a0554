"""What appears in a watched folder: grids are cut, names ordered, what is half written is read later, and once."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from grids import digits, grid, save_real
from specreg.autopsy.order import times
from specreg.autopsy.spectra import inspect
from specreg.data.pixels import cut_grid
from specreg.experiments.config import DataConfig
from specreg.experiments.watch import Checkpoints, Samples
from spoilt import encoded, torn

SOUND = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
FALLEN = SOUND * 0.02 + 1


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> str:
    return save_real(tmp_path_factory.mktemp("real"))


def samples(folder, real, **changes) -> Samples:
    options = {"tile": None, "features": None, "pool": 20, "warmup": 1} | changes
    return Samples(folder, DataConfig(data=real), **options)


def read(folder, *, last=False) -> list[tuple[str, int]]:
    return [(notice.name, notice.details["samples"]) for notice in folder.look(last=last)]


def save(run, weights: dict[str, torch.Tensor]) -> None:
    """Save checkpoints of one layer each."""
    for path, weight in weights.items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"conv.weight": weight}, run / path)


def judged(run, **options) -> list[tuple[str, str]]:
    return [(notice.name, notice.state) for notice in Checkpoints(run, **options).look(last=True)]


@pytest.mark.parametrize(("padding", "colour"), [(0, 0), (1, 0), (2, 0), (2, 255)])
@pytest.mark.parametrize("count", [24, 21])
def test_a_grid_is_cut_into_its_images(padding, colour, count):
    images = digits(count)
    picture = np.asarray(grid(images, 6, padding=padding, colour=colour).convert("RGB"))
    tiles = cut_grid(picture, (8, 8))
    expected = images.numpy()
    if not padding:  # nothing tells black images from none
        expected = np.concatenate([expected, np.zeros((24 - count, 8, 8), np.uint8)])
    assert np.array_equal(tiles[..., 0], expected)


def test_a_generator_that_makes_the_colour_of_the_lines_makes_images():
    picture = np.zeros((42, 32, 3), np.uint8)
    assert len(cut_grid(picture, (8, 8))) == 12
    picture[2:10, 2:10] = 255  # rows that are dark as a whole are no padding
    assert len(cut_grid(picture, (8, 8))) == 10


def test_lines_that_jpeg_has_blurred_are_lines():
    images = torch.randint(60, 256, (16, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    file = io.BytesIO()
    grid(images, 4, padding=2).save(file, "jpeg", quality=98)
    with Image.open(file) as blurred:
        assert len(cut_grid(np.asarray(blurred.convert("RGB")), (16, 16))) == 16


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("quality", [50, 75, 100])
def test_lines_between_colours_are_lines_after_jpeg(padding, quality):
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    photographs = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC)).reshape(4, 16, 4, 16, 3).swapaxes(1, 2)
    channels = [grid(torch.tensor(photographs[:3, ..., c]).flatten(0, 1), 4, padding=padding) for c in range(3)]
    whole = [Image.new("L", (64 + 5 * padding,) * 2) for _ in channels]  # a row for more
    for picture, channel in zip(whole, channels, strict=True):
        picture.paste(channel)
    file = io.BytesIO()
    Image.merge("RGB", whole).save(file, "jpeg", quality=quality)
    with Image.open(file) as blurred:
        tiles = cut_grid(np.asarray(blurred), (16, 16))
    assert tiles.shape == (13, 16, 16, 3)  # the last row has one place that is not known to be empty
    expected = photographs[:3].reshape(12, 16, 16, 3)
    assert np.abs(tiles[:12] - expected.astype(int)).mean() < 30


def test_an_animation_is_no_reading(run, real, caplog):
    frames = [Image.fromarray(image) for image in digits(3).numpy()]
    frames[0].save(run / "progress.gif", save_all=True, append_images=frames[1:])
    grid(digits(36), 6).save(run / "1.png")
    (run / "step_2").mkdir()
    frames[0].save(run / "step_2/progress.gif", save_all=True, append_images=frames[1:])
    for index, image in enumerate(digits(30).numpy()):
        Image.fromarray(image).save(run / f"step_2/{index}.png")
    assert read(samples(run, real), last=True) == [("1", 36), ("2", 30)]
    assert caplog.text.count("progress.gif is an animation: name the single pictures by --files; left out") == 2


def test_of_two_sizes_that_images_may_have_one_has_to_be_named(tmp_path, run):
    sides = digits(120).repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
    np.savez(tmp_path / "real.npz", images=sides)
    grid(torch.tensor(sides[:36]), 6).save(run / "1.png")
    data = DataConfig(data=str(tmp_path / "real.npz"), image_size=8)
    options = {"features": None, "pool": 20, "warmup": 1}
    with pytest.raises(
        ValueError, match="may be of images of 16x16, as the real ones are, or of 8x8: say which with --til"
    ):
        list(Samples(run, data, tile=None, **options).look(last=True))
    for tile, count in ((16, 36), (8, 144), (4, 576)):
        (notice,) = Samples(run, data, tile=(tile, tile), **options).look(last=True)
        assert notice.details["samples"] == count


def test_data_that_were_never_learnt_are_called_so_where_names_count_epochs(run, real):
    for epoch in range(25):
        grid(digits(1).expand(36, -1, -1), 6).save(run / f"epoch_{epoch}.png")
    states = [notice.state for notice in samples(run, real).look(last=True)]
    assert states[:20] == ["not judged"] * 20
    assert states[-1] == "never learnt"


def test_images_need_not_be_squares():
    noise = np.random.default_rng(0).integers(0, 256, (24, 12, 3), dtype=np.uint8)
    tiles = cut_grid(noise, (8, 6))
    assert tiles.shape == (6, 8, 6, 3)
    assert np.array_equal(tiles[1], noise[:8, 6:])


@pytest.mark.parametrize(
    ("size", "tile"), [((40, 40), (16, 16)), ((34, 33), (8, 8)), ((42, 42), (8, 8)), ((8, 8), (16, 16))]
)
def test_what_is_no_grid_is_not_cut(size, tile):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert cut_grid(noise, tile) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fakes000200", (200,)), ("fakes_init", ()), ("fake_samples_epoch_024", (24,)),
        ("fake_samples_epoch_003_batch_0040", (3,)), ("epoch=2-step=300", (2, 300)), ("samples_64x64_step100", (100,)),
        ("ema_0.9999_250000", (250_000,)), ("samples_seed7", ()), ("200kimg", (200,)), ("000100", (100,)),
        ("samples_50000x64x64x3", ()), ("0100_8x8", (100,)), ("D_lr0.0002_1000", (1000,)),
        ("reconstructions_gs-000750_e-000001_b-000250", (750,)), ("D_2024-05-01_12-31-40", ()),
        ("D_20240501-123140", ()), ("D_20240501_123140_step_50", (50,)), ("step_20240501", (20_240_501,)),
        ("generated_1200_0f3c9a1b2d4e5f60718a", (1200,)), ("netG_A2B", ()), ("d00100000", (100_000,)),
        ("CKPT+2024-05-01+12-30-50+01", ()), ("netD_epoch_3_1200", (3, 1200)), ("256_epoch_3_rank_0", (3,)),
        ("epoch_2nd_00010", (10,)), ("D_10th_epoch", (10,)),
    ],
)  # fmt: skip
def test_a_single_name_tells_its_time(name, expected):
    assert times(name) == expected


def test_readings_are_in_the_order_of_their_numbers_and_made_once(run, real):
    for name in ("fakes_init", "epoch_10", "epoch_9", "reals", "real_samples", "epoch_9_real"):
        grid(digits(64), 8, padding=2).save(run / f"{name}.png")
    folder = samples(run, real)
    assert read(folder) == [("fakes_init", 64), ("9", 64), ("10", 64)]
    assert read(folder) == []
    grid(digits(36), 6).save(run / "epoch_11.png")
    np.savez(run / "samples_12.npz", np.repeat(digits(30).numpy()[..., None], 3, axis=3))  # guided-diffusion's layout
    (run / "step-13").mkdir()
    grid(digits(25), 5).save(run / "step-13" / "grid.png")
    assert read(folder) == [("11", 36), ("12", 30), ("13", 25)]


def test_of_more_samples_than_a_reading_takes_some_of_all_are_read(run, real):
    images = digits(24)
    np.savez(run / "samples.npz", images.repeat_interleave(1000, dim=0).numpy())  # as sorted by class
    content = samples(run, real).read([run / "samples.npz"])
    assert len(content) == 8000
    assert len(torch.unique(content, dim=0)) == len(torch.unique(images, dim=0))


def test_what_is_half_written_is_read_when_it_is_whole(run, real, caplog):
    whole = encoded(grid(digits(64), 8))
    folder = samples(run, real)
    for content in (b"", whole[:20], torn(whole)):
        (run / "fakes000200.png").write_bytes(content)
        assert read(folder) == []
    (run / "fakes000200.png").write_bytes(whole)
    assert read(folder) == [("200", 64)]
    assert caplog.messages == []


def test_what_is_written_on_after_a_pause_is_read(run, caplog):
    whole = io.BytesIO()
    torch.save({"conv.weight": torch.eye(16)}, whole)
    folder = Checkpoints(run)
    for part in (0.3, 0.3, 0.3, 0.6, 0.6, 0.6):
        (run / "D_1.pt").write_bytes(whole.getvalue()[: int(part * len(whole.getvalue()))])
        os.utime(run / "D_1.pt", (part, part))
        assert list(folder.look(last=False)) == []
    assert len(caplog.messages) == 2  # one for each pause
    (run / "D_1.pt").write_bytes(whole.getvalue())
    assert [notice.name for notice in folder.look(last=False)] == ["1  D_#.pt"]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("name", ["D.pt", "latest_net_D.pth", "latest/D.pt"])
def test_a_checkpoint_that_is_overwritten_under_one_name_is_read_again(name, run):
    folder, said = Checkpoints(run), []
    for second, weight in enumerate((SOUND, SOUND, FALLEN)):
        save(run, {name: weight})
        os.utime(run / name, (second, second))
        for _ in range(2):  # it is read once for each change
            said += [(notice.details["iteration"], notice.state) for notice in folder.look(last=False)]
    assert said == [(0, "not judged"), (1, "steady"), (2, "collapsed")]


def test_what_is_torn_while_it_is_overwritten_is_read_when_it_is_whole(run, real, caplog):
    whole = encoded(grid(digits(64), 8))
    folder = samples(run, real)
    for second, content in enumerate((whole, torn(whole), whole)):
        (run / "fakes.png").write_bytes(content)
        os.utime(run / "fakes.png", (second, second))
        assert read(folder) == ([] if content != whole else [("fakes", 64)])
    assert caplog.messages == []


def test_what_is_overwritten_under_the_number_of_its_time_is_read_once(run):
    folder = Checkpoints(run)
    for second, weight in enumerate((SOUND, FALLEN)):
        save(run, {"D_1.pt": weight})
        os.utime(run / "D_1.pt", (second, second))
        assert len(list(folder.look(last=False))) == 1 - second


@pytest.mark.parametrize(("files", "only"), [([], ""), (["do_*"], ", of the names of --files (do_*)")])
def test_a_folder_without_anything_to_read_is_told_of_once(files, only, run, caplog):
    folder = Checkpoints(run, files=files)
    save(run, {"model.keras": SOUND})
    for _ in range(3):
        assert list(folder.look(last=False)) == []
    (message,) = caplog.messages
    assert message.startswith(f"{run} holds nothing to read yet{only}: looked for checkpoints, .bin, ")
    save(run, {"do_1.pt": SOUND})
    assert len(list(folder.look(last=False))) == 1
    assert len(caplog.messages) == 1


def test_what_stays_unreadable_is_named_once(run, real, caplog):
    (run / "fakes000200.png").write_bytes(torn(encoded(grid(digits(64), 8))))
    Image.new("L", (33, 40)).save(run / "losses.png")
    grid(digits(64), 8).save(run / "fakes000400.png")
    folder = samples(run, real)
    assert read(folder) == [("400", 64)]
    for _ in range(3):
        assert read(folder) == []
    assert len(caplog.messages) == 2
    assert "fakes000200.png is not a readable image (OSError); left out" in caplog.text
    told = "losses.png is 33x40, no grid of 8x8 images: give their size with --tile HEIGHTxWIDTH; left out"
    assert told in caplog.text
    assert folder.missing().endswith("; another size is --tile HEIGHTxWIDTH")


def test_a_warning_is_a_line_whatever_a_name_holds(run, caplog):
    save(run, {"D_1.pt": SOUND})
    (run / "D\nspecreg: all is well_2.pt").write_bytes(b"text")
    judged(run)
    (message,) = caplog.messages
    assert message.isprintable()


@pytest.mark.parametrize("inside", ["step-100", "step-100/cats", ""])
def test_a_folder_of_images_is_read_when_nothing_is_added(run, real, inside):
    folder, samples_folder = samples(run, real, pool=1), run / inside
    samples_folder.mkdir(parents=True, exist_ok=True)
    (samples_folder / "29.png").touch()  # nothing tells yet that it is an image of this size
    for count in (10, 30):
        for index, image in enumerate(digits(count)):
            Image.fromarray(image.numpy()).save(samples_folder / f"{index}.png")
        assert read(folder) == []
    assert read(folder) == [("100" if inside else "run", 30)]
    assert read(folder) == []


def test_small_grids_are_read_together_and_what_is_left_is_named(run, real, caplog):
    folder = samples(run, real, pool=40)
    for index in range(5):
        grid(digits(16), 4).save(run / f"{index}.png")
    assert read(folder) == [("2", 48)]
    grid(digits(16), 4).save(run / "5.png")
    assert read(folder) == [("5", 48)]
    grid(digits(16), 4).save(run / "6.png")
    assert read(folder) == []
    assert list(folder.look(last=True)) == []
    assert caplog.messages == ["16 images, and a reading takes 40; left out"]


def test_images_of_another_size_and_of_colour_are_compared_at_the_size_of_the_real_ones(run, real):
    images = digits(36).repeat_interleave(2, 1).repeat_interleave(2, 2)
    grid(images, 6).convert("RGB").save(run / "1.png")
    (notice,) = samples(run, real, tile=(16, 16)).look(last=True)
    assert notice.details["samples"] == 36
    assert notice.details["far"] < 0.1


def test_checkpoints_are_judged_by_their_spectra_each_model_for_itself(run):
    folder, states = Checkpoints(run), []
    for epoch in range(8):
        save(run, {f"netG_epoch_{epoch}.pth": SOUND, f"netD_epoch_{epoch}.pth": FALLEN if epoch > 4 else SOUND})
        torch.save({"state": {}}, run / "optimizer.pt")
        states.append({notice.name.split()[1]: notice.state for notice in folder.look(last=False)})
    assert states[0] == dict.fromkeys(("netD_epoch_#.pth", "netG_epoch_#.pth"), "not judged")
    assert states[4] == dict.fromkeys(("netD_epoch_#.pth", "netG_epoch_#.pth"), "steady")
    assert states[7] == {"netD_epoch_#.pth": "collapsed", "netG_epoch_#.pth": "steady"}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["best", "last", "epoch_1", "epoch_2"], [("best", 0), ("epoch_1", 1), ("epoch_2", 2), ("last", 3)]),
        (["init", "step_0", "step_100"], [("init", 0), ("step_0", 1), ("step_100", 100)]),
        (["50k", "10k", "latest"], [("10k", 10_000), ("50k", 50_000), ("latest", 50_001)]),
        (["final", "initial"], [("initial", 0), ("final", 1)]),
    ],
)
def test_folders_of_the_first_and_of_the_newest_checkpoint_are_in_their_places(folders, expected, run):
    save(run, {f"{folder}/D.pt": SOUND for folder in folders})
    details = [notice.details for notice in Checkpoints(run).look(last=True)]
    assert [(Path(said["path"]).parent.name, said["iteration"]) for said in details] == expected


def test_the_newest_checkpoint_is_compared_with_those_that_have_numbers(run):
    steps = dict.fromkeys(("10k/D.pt", "50k/D.pt"), SOUND)
    save(run, steps | {"latest/D.pt": FALLEN, "start/D.pt": SOUND})
    assert [state for _, state in judged(run)] == ["not judged", "steady", "steady", "collapsed"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("G/step_{}.pt", "D/step_{}.pt", ["G/step_#.pt", "D/step_#.pt"]),
        ("checkpoint-{}/G/model.pt", "checkpoint-{}/D/model.pt", ["G/model.pt", "D/model.pt"]),
        ("checkpoint_{}/model.pt", "checkpoint_{}/model_1.bin", ["model.pt", "model_1.bin"]),
        ("step_{}/pytorch_model_1.bin", "step_{}/pytorch_model_2.bin", ["pytorch_model_1.bin", "pytorch_model_2.bin"]),
        ("step_{}/D_1.pt", "step_{}/D_2.pt", ["D_1.pt", "D_2.pt"]),
        ("checkpoint-{}/encoder/D.pt", "checkpoint-{}/encoder_2/D.pt", ["encoder/D.pt", "encoder_2/D.pt"]),
        ("run1/step_{}.pt", "run2/step_{}.pt", ["run1/step_#.pt", "run2/step_#.pt"]),
        ("00000-x/snapshot-{}.pkl", "00001-x/snapshot-{}.pkl", ["00000-x/snapshot-#.pkl", "00001-x/snapshot-#.pkl"]),
        ("2024-05-01/D_{}.pt", "2024-05-02/D_{}.pt", ["2024-05-01/D_#.pt", "2024-05-02/D_#.pt"]),
        ("D_seed1_{}.pt", "D_seed2_{}.pt", ["D_seed1_#.pt", "D_seed2_#.pt"]),
        ("ema_0.999_{}.pt", "ema_0.9999_{}.pt", ["ema_0.999_#.pt", "ema_0.9999_#.pt"]),
    ],
)
def test_models_beside_each_other_are_series_of_their_own(first, second, expected, run):
    for step in (100, 200, 300):
        save(run, {first.format(step): SOUND, second.format(step): FALLEN})
    names = dict(judged(run))
    assert set(names) == {f"{step}  {name}" for step in (100, 200, 300) for name in expected}
    assert all(names[f"300  {name}"] == "steady" for name in expected)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["run1/D.pt", "run2/D.pt"], ["run1/D.pt", "run2/D.pt"]),
        (["seed0/last/D.pt", "seed1/last/D.pt"], ["seed0/D.pt", "seed1/D.pt"]),
        (["best/D.pt", "last/D.pt"], ["best/D.pt", "D.pt"]),
        (["D/model.pt", "G/model.pt"], ["D/model.pt", "G/model.pt"]),
    ],
)
def test_models_in_folders_without_a_time_are_not_compared(files, kind, run):
    save(run, dict(zip(files, (SOUND, FALLEN), strict=True)))
    assert judged(run) == [(f"0  {name}", "not judged") for name in kind]


@pytest.mark.parametrize(
    "names",
    [
        ["epoch_1/model_1.bin", "epoch_2/model_2.bin", "epoch_3/model_3.bin"],
        ["step_100/model_100.bin", "step_200/model_200.bin", "step_300/model_300.bin"],
        ["epoch=1-loss=0.20.ckpt", "epoch=2-loss=1e-05.ckpt", "epoch=3-loss=-0.10.ckpt"],
        ["epoch_1/D_loss_0.8.pt", "epoch_2/D_loss_0.7.pt", "epoch_3/D_loss_-0.6.pt"],
        ["loss_0.8/D_epoch_1.pt", "loss_0.7/D_epoch_2.pt", "loss_-0.6/D_epoch_3.pt"],
        ["D_2024-05-01_12-30-50.pt", "D_2024-05-01_12-31-40.pt", "D_2024-05-01_12-32-30.pt"],
        ["CKPT+2024-05-01+12-30-50+00/D.pt", "CKPT+2024-05-01+23-10-00+00/D.pt", "CKPT+2024-05-02+01-05-00+00/D.pt"],
        ["D_lr0.0002_900.pt", "D_lr0.0002_1000.pt", "D_lr0.0002_1100.pt"],
        ["checkpoint_1714567890123456789.pt", "checkpoint_1714567950123456789.pt", "checkpoint_1714568010123456789.pt"],
    ],
)
def test_checkpoints_of_one_model_are_one_series_whatever_else_their_names_say(names, run):
    save(run, dict(zip(names, (SOUND, SOUND, FALLEN), strict=True)))
    said = judged(run)
    assert [state for _, state in said] == ["not judged", "steady", "collapsed"]
    assert len({name.partition("  ")[2] for name, _ in said}) == 1


@pytest.mark.parametrize("folder", ["epoch_{}", "checkpoint_model_{:06}"])  # the latter is DMD2's
@pytest.mark.parametrize("model", ["model", "pytorch_model_fsdp"])
def test_the_first_of_accelerates_models_tells_that_the_second_has_a_number_of_its_own(folder, model, run):
    for step in (1, 2):
        path = run / folder.format(step)
        path.mkdir()
        for name in (model, f"{model}_1"):
            save_file({"conv.weight": SOUND}, path / f"{name}.safetensors")
    names = [name for name, _ in judged(run)]
    assert names == [f"{step}  {name}.safetensors" for step in (1, 2) for name in (model, f"{model}_1")]


def test_a_folder_that_is_removed_while_it_is_read_ends_nothing(run, monkeypatch):
    path = run / "checkpoint_500" / "netD_500.pt"
    save(run, {"checkpoint_500/netD_500.pt": SOUND})
    folder = Checkpoints(run)
    read = folder.read

    def read_and_remove(files):
        content = read(files)
        shutil.rmtree(path.parent)
        return content

    monkeypatch.setattr(folder, "read", read_and_remove)
    assert [notice.state for notice in folder.look(last=True)] == ["not judged"]


def test_layers_of_checkpoints_can_be_chosen(run):
    for step in (1, 2, 3):
        teacher = SOUND if step < 3 else FALLEN
        save_file({"teacher.weight": teacher, "head.weight": SOUND.clone()}, run / f"D_{step}.safetensors")
    found = [notice.state for notice in Checkpoints(run, layers=["head"]).look(last=True)]
    assert found == ["not judged", "steady", "steady"]


def test_numbered_models_in_a_folder_with_a_number_are_of_one_series(run):
    save(run, {f"mnist_64/model_{step}.bin": SOUND for step in (1, 2, 64, 65)})
    assert [name for name, _ in judged(run)] == [f"{step}  mnist_64/model_#.bin" for step in (1, 2, 64, 65)]


@pytest.mark.parametrize("name", ["model_{0}/model_{0}.pth", "save_{0}/D_{0}.pth", "{0}/D_{0}.pth"])
def test_a_folder_that_repeats_its_files_number_is_of_a_time(name, run):
    save(run, {name.format(step): SOUND for step in (1000, 2000, 3000)})
    assert len({said.partition("  ")[2] for said, _ in judged(run)}) == 1


def test_numbered_models_in_the_folder_of_each_epoch_are_not_one_series(run):
    save(run, {f"epoch_{epoch}/D_{number}.pth": (SOUND, FALLEN)[number] for epoch in (1, 2) for number in (0, 1)})
    assert [name for name, _ in judged(run)] == [f"{epoch}  D_{number}.pth" for epoch in (1, 2) for number in (0, 1)]


def test_the_epoch_is_the_folders_whatever_number_the_files_name_has(run, real):
    for epoch, weight in ((1, SOUND), (2, SOUND), (3, FALLEN)):
        save(run, {f"epoch_{epoch}/pix2pix.pth": weight})
    assert [state for _, state in judged(run)] == ["not judged", "steady", "collapsed"]
    for epoch in (1, 2):
        for number in (0, 1):
            grid(digits(24), 4).save(run / f"epoch_{epoch}" / f"grid_{number}.png")
    notices = samples(run, real, pool=1).look(last=True)
    order = [Path(notice.details["path"]).relative_to(run).as_posix() for notice in notices]
    assert order == [f"epoch_{epoch}/grid_{number}.png" for epoch in (1, 2) for number in (0, 1)]


def test_a_folder_that_may_not_be_read_is_named(run, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=r"cannot be read .*check its permissions"):
        Checkpoints(run)


def test_images_in_the_working_directory_are_named_by_it(run, real, monkeypatch):
    monkeypatch.chdir(run)
    for index, image in enumerate(digits(24)):
        Image.fromarray(image.numpy()).save(f"{index}.png")
    assert read(samples(Path("."), real), last=True) == [(run.name, 24)]


@pytest.mark.parametrize("files", ["reconstructions_*", "train/reconstructions_gs-*"])
def test_pictures_that_lie_beside_the_samples_are_left_out_where_names_are_given(files, run, real, caplog):
    (run / "train").mkdir()
    for step, count in ((0, 20), (100, 24)):
        grid(digits(count), 4).save(run / f"train/inputs_gs-{step:06d}.png")
        grid(digits(count), 4).save(run / f"train/reconstructions_gs-{step:06d}.png")
    assert read(samples(run, real), last=True) == [("0", 20), ("0", 20), ("100", 24), ("100", 24)]
    assert caplog.messages == [
        "inputs_gs-#.png and reconstructions_gs-#.png are of one iteration, judged as one series: name one by --files"
    ]
    caplog.clear()
    assert read(samples(run, real, files=[files]), last=True) == [("0", 20), ("100", 24)]
    assert caplog.messages == []
    with pytest.raises(ValueError, match=r"holds nothing to read, of the names of --files \(fakes\*\): looked for"):
        read(samples(run, real, files=["fakes*"]), last=True)


@pytest.mark.parametrize(
    ("folders", "name", "series"),
    [
        (["inputs", "reconstructions"], "000100.png", "#.png"),
        (["00000-x", "00001-x"], "fakes000200.png", "fakes#.png"),  # of several runs
    ],
)
def test_pictures_of_one_name_in_folders_beside_each_other_are_warned_of(folders, name, series, run, real, caplog):
    for folder in folders:
        (run / folder).mkdir()
        grid(digits(24), 4).save(run / folder / name)
    read(samples(run, real), last=True)
    (message,) = caplog.messages
    assert set(re.findall("[-a-z0-9]+/[a-z]*#.png", message)) == {f"{folder}/{series}" for folder in folders}
    assert "are of one iteration, judged as one series: name one by --files" in message


def test_checkpoints_without_an_ending_are_read_where_they_are_named(run):
    save(run, dict.fromkeys(("g_00001000", "do_00001000", "do_00002000", "log"), SOUND))
    with pytest.raises(ValueError, match="holds nothing to read: looked for checkpoints"):
        judged(run)
    assert [name for name, _ in judged(run, files=["do_*"])] == ["1000  do_#", "2000  do_#"]


@pytest.mark.parametrize("word", ["step_", ""])
def test_steps_that_begin_anew_with_each_epoch_are_counted_on(word, run, real):
    for epoch in range(3):
        for step in (0, 500):
            save(run, {f"D_epoch_{epoch}_{word}{step}.pt": SOUND})
            grid(digits(24), 4).save(run / f"fake_epoch_{epoch}_{word}{step}.png")
    names = [name.split()[0] for name, _ in judged(run)]
    assert names == ["0", "500", "501", "1000", "1001", "1500"]
    assert [name for name, _ in read(samples(run, real))] == names


def test_a_checkpoint_in_several_files_is_read_by_its_index(run):
    weights = {f"conv{index}.weight": torch.randn(16, 8, 3, 3) for index in range(2)}
    for step in (500, 1000):
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        places = {}
        for index, (name, weight) in enumerate(weights.items()):
            places[name] = f"model-0000{index + 1}-of-00002.safetensors"
            save_file({name: weight}, folder / places[name])
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
        (folder / "config.json").write_text("{}", encoding="utf-8")
        for name in ("optimizer.bin", "sampler.bin", "custom_checkpoint_0.pkl", "dl_state_dict.bin"):
            torch.save({"weight": torch.randn(8, 8)}, folder / name)
    assert [(name.split()[0], state) for name, state in judged(run)] == [("500", "not judged"), ("1000", "steady")]
    assert len(inspect([run / "checkpoint-500"]).layers[0]) == 2


def test_an_index_is_read_when_the_files_that_it_names_are_whole(run, caplog):
    places = {f"conv{index}.weight": f"model-0000{index}-of-00002.safetensors" for index in (1, 2)}
    for name, place in places.items():
        save_file({name: torch.eye(16)}, run / place)
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    last = run / "model-00002-of-00002.safetensors"
    whole, folder = last.read_bytes(), Checkpoints(run)
    for size in (100, 300, 600):
        last.write_bytes(whole[:size])
        assert list(folder.look(last=False)) == []
    last.write_bytes(whole)
    assert [notice.name for notice in folder.look(last=False)] == ["0  model.safetensors.index.json"]
    assert caplog.messages == []


def test_a_checkpoint_that_cannot_be_compared_is_named_and_ends_no_series(run):
    save(run, {f"D_epoch_{epoch}.pt": SOUND for epoch in (0, 1, 4)} | {"D_epoch_2.pt": SOUND * torch.nan})
    torch.save({"other.weight": torch.randn(8, 8)}, run / "D_epoch_3.pt")
    said = [(notice.state, notice.message) for notice in Checkpoints(run).look(last=True)]
    assert [state for state, _ in said] == ["not judged", "steady", "not judged", "not judged", "steady"]
    assert said[2][1] == "left out: NaN or inf in conv"
    assert said[3][1] == "left out: no layer of those before it"


def test_models_of_several_widths_are_not_judged_as_one_training(run):
    save(run, {"netD0.pth": SOUND, "netD1.pth": FALLEN[:8], "netD2.pth": FALLEN[:4], "netD3.pth": SOUND})
    said = [(notice.state, notice.message) for notice in Checkpoints(run).look(last=True)]
    other = ("not judged", "left out: conv of another shape than before it: name one model by --files")
    assert said[1:3] == [other, other]
    assert [state for state, _ in said] == ["not judged", "not judged", "not judged", "steady"]


def test_a_layer_that_has_never_been_finite_hides_no_collapse(run):
    for epoch, weight in enumerate([SOUND, SOUND, FALLEN]):
        state = {"conv.weight": weight, "mask.weight": torch.full((8, 8), torch.inf)}
        torch.save(state, run / f"D_epoch_{epoch}.pt")
    assert [state for _, state in judged(run)] == ["not judged", "steady", "collapsed"]


def test_an_older_checkpoint_is_left_out(run, caplog):
    folder = Checkpoints(run)
    for name in ("D_epoch_1_step_500", "D_epoch_1_step_250", "D_epoch_2_step_0"):
        save(run, {f"{name}.pt": SOUND})
        list(folder.look(last=False))
    assert [message.partition(" ")[2] for message in caplog.messages] == [
        "is not newer than what was read before: left out; of several models name one by --files"
    ]


def test_of_checkpoints_of_one_time_those_that_are_left_out_are_not_called_older(run, caplog):
    save(run, {f"network-snapshot-{step:07}-{ema}.pt": SOUND for step in (2097, 4194) for ema in ("0.050", "0.100")})
    assert [state for _, state in judged(run)] == ["not judged", "steady"]
    assert [message.rpartition("/")[2] for message in caplog.messages] == [
        f"network-snapshot-{step:07}-0.100.pt has the same number {step} as what was read before: left out; of several "
        "models name one by --files"
        for step in (2097, 4194)
    ]
    caplog.clear()
    assert len(list(Checkpoints(run, files=("*-0.100.pt",)).look(last=True))) == 2
    assert not caplog.messages


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["epoch_0/step_0", "epoch_0/step_500", "epoch_1/step_0", "epoch_1/step_500"], ["0", "500", "501", "1000"]),
        (["fake_0_0", "fake_0_500", "fake_1_0", "fake_1_500"], ["0", "500", "501", "502"]),  # no words, no epochs
        (["a_100_0", "a_100_1", "a_200_0"], ["0", "1", "2"]),
        (["fakes_init", "fakes000000", "fakes000200"], ["fakes_init", "0", "200"]),
        (["a", "b", "epoch_0_step_0", "epoch_0_step_500", "epoch_1_step_0"], ["a", "b", "1", "500", "501"]),
        (
            [
                f"epoch_{time}"
                for time in ("0_step_0", "0_step_500", "1_step_0", "0_step_250", "1_step_500", "2_step_0")
            ],
            ["0", "500", "501", "502", "1000", "1001"],
        ),
        (["steps_50/epoch_3", "steps_50/epoch_4"], ["3", "4"]),
        (["step_100/grid_0", "step_100/grid_1", "step_200/grid_0", "step_200/grid_1"], ["100", "100", "200", "200"]),
        (["a_gs-000500_e-000000_b-000500", "a_gs-000750_e-000001_b-000000"], ["500", "750"]),
        (["ema_000100/samples_24x8x8", "ema_000200/samples_24x8x8"], ["100", "200"]),
        (["fakes000200", "fakes000100", "fakes000400"], ["200", "201", "400"]),  # one was complete later
    ],
)
def test_readings_of_a_live_training_are_all_judged_at_iterations_that_never_fall(files, expected, run, real):
    folder, names = samples(run, real), []
    for file in files:
        (run / file).parent.mkdir(exist_ok=True)
        grid(digits(24), 4).save(run / f"{file}.png")
        names += [name for name, _ in read(folder)]
    assert names == expected


def test_images_that_come_into_a_folder_that_was_read_are_told_of_once(run, real, caplog):
    folder = samples(run, real)
    for index, image in enumerate(digits(24).numpy()):
        Image.fromarray(image).save(run / f"step_100_{index}.png")
    assert read(folder) == []
    assert read(folder) == [(run.name, 24)]
    assert caplog.messages == []
    Image.fromarray(digits(1).numpy()[0]).save(run / "step_200_0.png")
    assert read(folder) == read(folder) == []
    assert caplog.messages == [f"{run} was read before more came into it: give every reading a folder of its own"]


def test_of_a_folder_that_was_refused_nothing_else_is_said(run, real, caplog):
    folder = samples(run, real)
    (run / "whole.png").write_bytes(encoded(grid(digits(24), 4)))
    (run / "step_1").mkdir()
    for index in range(2):
        (run / f"step_1/{index}.png").write_bytes(torn(encoded(Image.fromarray(digits(1).numpy()[0]))))
    for _ in range(3):
        list(folder.look(last=False))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; left out")
    (run / "step_1/2.png").write_bytes(encoded(Image.fromarray(digits(1).numpy()[0])))
    list(folder.look(last=False))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("warmup", "is_judged"), [(1, True), (1000, False)])
def test_samples_far_from_the_data_are_not_judged_within_the_warm_up(run, real, warmup, is_judged):
    noise = torch.randint(256, (60, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for step in (100, 200, 300):
        grid(noise, 10).save(run / f"fakes{step:06}.png")
    states = [notice.state for notice in samples(run, real, warmup=warmup).look(last=True)]
    assert len(states) == 3
    assert (states[-1] != "not judged") == is_judged

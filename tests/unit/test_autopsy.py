"""The autopsy: right numbers for every way a weight is stored, damaged and hostile files, verdicts, pictures."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import specreg
from kinds import matrix_with_spectrum
from specreg import display
from specreg.autopsy.checkpoints import open_checkpoint
from specreg.autopsy.figure import save
from specreg.autopsy.order import ordered
from specreg.autopsy.spectra import inspect, judge
from specreg.monitor.actions import Pin
from specreg.names import printable
from spoilt import quiet, written


def matrix_of(weight: torch.Tensor, output_dim: int = 0) -> np.ndarray:
    return np.moveaxis(weight.detach().numpy().astype(np.float64), output_dim, 0).reshape(weight.shape[output_dim], -1)


def spectrum_of(weight: torch.Tensor, output_dim: int = 0) -> np.ndarray:
    return np.linalg.svd(matrix_of(weight, output_dim), compute_uv=False)


def level(part: float) -> torch.Tensor:
    """A matrix whose singular values are 1 and, fifteen times, a part of it."""
    return torch.diag(torch.tensor([1.0] + [part] * 15))


def legacy_weight_norm(layer: nn.Module, dim: int | None = 0) -> nn.Module:
    """An old checkpoint's layer, with g unlike |v|, so that g alone or v alone is wrong."""
    weight_norm(layer, dim=dim)
    layer.weight_g.data.mul_(torch.rand_like(layer.weight_g) + 0.5)
    layer(torch.zeros(2, layer.in_features))
    return layer


def parametrized_weight_norm(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer)
    held = layer.parametrizations.weight.original0.data
    held.mul_(torch.rand_like(held) + 0.5)
    return layer


def pruned(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", amount=0.5)


# a layer, what its weight is, and which dimension counts the outputs
STORED = {
    "linear": (lambda: nn.Linear(9, 6), lambda layer: layer.weight, 0),
    "convolution": (lambda: nn.Conv2d(3, 8, 3), lambda layer: layer.weight, 0),
    "attention": (lambda: nn.MultiheadAttention(6, 2), lambda layer: layer.in_proj_weight, 0),
    "legacy sn": (lambda: spectral_norm(nn.Conv2d(3, 8, 3)), lambda layer: layer.weight_orig, 0),
    "legacy sn, transposed": (lambda: spectral_norm(nn.ConvTranspose2d(4, 7, 3)), lambda layer: layer.weight_orig, 1),
    "new sn": (
        lambda: parametrizations.spectral_norm(nn.Conv1d(4, 5, 3)),
        lambda layer: layer.parametrizations.weight.original,
        0,
    ),
    "new sn, transposed": (
        lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(3, 8, 4)),
        lambda layer: layer.parametrizations.weight.original,
        1,
    ),
    "legacy weight norm": (lambda: legacy_weight_norm(nn.Linear(9, 6)), lambda layer: layer.weight, 0),
    "legacy weight norm, one g": (lambda: legacy_weight_norm(nn.Linear(9, 6), dim=None), lambda layer: layer.weight, 0),
    "new weight norm": (lambda: parametrized_weight_norm(nn.Linear(9, 6)), lambda layer: layer.weight, 0),
    "pruned": (lambda: pruned(nn.Linear(9, 6)), lambda layer: layer.weight, 0),
}


@pytest.mark.parametrize("case", STORED)
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_the_numbers_are_those_of_the_stored_weight(case, form, tmp_path):
    make, weight_of, output_dim = STORED[case]
    torch.manual_seed(3)
    layer = make()
    weight = weight_of(layer)
    state = {f"block.layer.{name}": value.contiguous() for name, value in layer.state_dict().items()}
    path = tmp_path / "model"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "model": state}, path)
    found = inspect([path], only=["*layer*"], skip=["*out_proj"] if case == "attention" else []).layers[0]
    name = "block.layer.in_proj_weight" if case == "attention" else "block.layer"
    assert list(found) == [name if form == "safetensors" else f"model.{name}"]
    one = next(iter(found.values()))
    expected = spectrum_of(weight, output_dim)
    assert one.matrix == matrix_of(weight, output_dim).shape
    assert one.shape == tuple(weight.shape)
    np.testing.assert_allclose(one.singular_values, expected, atol=2e-5 * expected[0])
    assert one.statistics["stable_rank"] == pytest.approx((expected**2).sum() / expected[0] ** 2, rel=1e-4)


def test_a_derived_weight_beside_its_original_is_no_layer_of_its_own(tmp_path):
    state = {"a.weight": torch.eye(3), "a.weight_bar": 5 * torch.eye(3), "a.weight_u": torch.ones(3)}
    found = inspect([saved(tmp_path, state)]).layers[0]
    assert {name: one.statistics["largest"] for name, one in found.items()} == {"a": 5.0}


def test_a_transposed_convolution_is_told_by_name(tmp_path):
    weight = torch.randn(6, 6, 3)
    save_file({"up.weight": weight, "down.weight": weight.clone()}, tmp_path / "m.safetensors")
    found = inspect([tmp_path / "m.safetensors"], transposed=["up"]).layers[0]
    for name, output_dim in (("up", 1), ("down", 0)):
        np.testing.assert_allclose(found[name].singular_values, spectrum_of(weight, output_dim), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_every_floating_type_is_read(dtype, tmp_path):
    weight = torch.randn(8, 12).to(dtype)
    save_file({"a.weight": weight, "b.weight": torch.ones(4, 4, dtype=torch.int8)}, tmp_path / "m.safetensors")
    found = inspect([tmp_path / "m.safetensors"])
    np.testing.assert_allclose(found.layers[0]["a"].singular_values, spectrum_of(weight.double()), rtol=1e-4)
    assert list(found.layers[0]) == ["a"]
    assert found.notes[0].endswith("tensors left out: 1 of integers")


def test_spectra_of_one_bulk_are_not_called_the_same(tmp_path):
    for step in (1, 2):  # of the lower half, and of the scale, the bulk knows nothing
        values = torch.tensor([1, 1, 1, 0.3 / step])
        torch.save({"a.weight": torch.diag(values), "b.weight": step * torch.eye(4)}, tmp_path / f"step_{step}")
    found = inspect(sorted(tmp_path.iterdir()))
    assert found.verdict.message == "steady: no layer's spectrum falls fast or far (2 of rank > 1 watched)"


def test_integers_with_scales_are_told_alike_of_every_format(tmp_path):
    state = {
        "a.weight": torch.ones(4, 4, dtype=torch.int8),
        "a.weight_scale": torch.ones(4, 4),
        "b.weight": torch.eye(3),
    }
    save_file(state, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "m.pt")
    notes = [inspect([tmp_path / name]).notes[0].partition(": ")[2] for name in ("m.safetensors", "m.pt")]
    assert notes == ["tensors left out: 1 of integers"] * 2


def test_a_name_with_brackets_is_a_name(tmp_path):
    torch.save({"conv[0].weight": torch.eye(3), "conv0.weight": torch.eye(3)}, tmp_path / "m.pt")
    assert list(inspect([tmp_path / "m.pt"], only=["conv[0]"]).layers[0]) == ["conv[0]"]
    assert list(inspect([tmp_path / "m.pt"], skip=["conv[0]"]).layers[0]) == ["conv0"]


def test_of_a_training_state_only_weights_are_taken(tmp_path):
    layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state = {"networks": [layer.state_dict()], "optimizer": optimizer.state_dict(), "pos_embed": torch.ones(1, 2, 3)}
    state["itself"] = state
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    found = open_checkpoint(tmp_path / "c.pt")
    assert [weight.name for weight in found.weights] == ["networks.0.0"]
    assert dict(found.left_out) == {"of an optimizer": 2, "not named like a weight": 1}
    named = open_checkpoint(tmp_path / "c.pt", only=["pos_embed"])
    assert [weight.shape for weight in named.weights] == [(1, 2, 3)]


def test_specregs_own_states_are_no_layers(tmp_path):
    module = nn.ModuleDict({"rnn": nn.LSTM(4, 4), "out": nn.Linear(4, 3)})
    monitor, pin = specreg.Monitor(module, every=1), Pin({"D": module})
    for step in (1, 2, 3):
        pin(monitor.step(step))
    states = {"D": module.state_dict(), "monitor": monitor.state_dict(), "pin": pin.state_dict()}
    found = open_checkpoint(saved(tmp_path, states))
    assert [weight.name for weight in found.weights] == ["D.rnn.weight_ih_l0", "D.rnn.weight_hh_l0", "D.out"]
    (own,) = found.left_out.values()
    assert own >= 2 + 3 * len(pin.iterations) > 2


def test_what_an_optimizer_holds_is_told_by_its_name(tmp_path):
    words = ("optimal_map.0.weight", "optimus.weight", "optimizerG.weight", "optim_d.weight", "optim.weight")
    found = open_checkpoint(saved(tmp_path, {name: torch.eye(2) for name in words}))
    assert [weight.name for weight in found.weights] == ["optimal_map.0", "optimus"]


def index(folder: Path, shard: str) -> Path:
    path = folder / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    return path


def truncated(folder: Path, form: str) -> Path:
    path = folder / f"m.{form}"
    state = {"a.weight": torch.ones(40, 40)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "pt")
    return written(folder, path.read_bytes()[:-1000], path.name)


def saved(folder: Path, state) -> Path:
    torch.save(state, folder / "m.pt")
    return folder / "m.pt"


def emptied_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "m.pt", "w") as file:
        file.writestr("readme", "no model")
    return folder / "m.pt"


BAD = {
    "an empty folder": (lambda folder: folder, "holds no checkpoints"),
    "an empty file": (lambda folder: written(folder, b""), "is empty"),
    "text": (lambda folder: written(folder, b"hello, world, hello"), "neither a safetensors file nor"),
    "a git pointer": (lambda folder: written(folder, b"version https://git-lfs"), "git lfs pull"),
    "a git pointer of safetensors": (
        lambda folder: written(folder, b"version https://git-lfs", "m.safetensors"),
        "git lfs pull",
    ),
    "a damaged safetensors": (lambda folder: written(folder, b"\0" * 99, "m.safetensors"), "is damaged or incomplete"),
    "truncated safetensors": (lambda folder: truncated(folder, "safetensors"), "is damaged or incomplete"),
    "truncated zip": (lambda folder: truncated(folder, "pt"), "is damaged or incomplete"),
    "truncated pickle": (lambda folder: truncated(folder, "pth"), "is damaged or incomplete"),
    "a zip of something else": (emptied_zip, "is damaged or incomplete"),
    "nothing": (lambda folder: saved(folder, {}), "holds no weight matrix, but 0 tensors of one dimension: name"),
    "a number": (lambda folder: saved(folder, 3), "holds no weight matrix, but 0 tensors of one dimension: name"),
    "no matrix": (lambda folder: saved(folder, {"bias": torch.ones(3)}), "but 1 tensors of one dimension (bias): name"),
    "an optimizer": (
        lambda folder: saved(folder, {"opt": {"exp_avg": torch.ones(3, 3)}}),
        "left out, 1 of an optimizer: name",
    ),
    "no named matrix": (
        lambda folder: saved(folder, {"a": torch.ones(3, 3), "b": torch.ones(3, 3, dtype=torch.int64)}),
        "but 1 other matrices (a): name those to take with --only",
    ),
    "a tensor alone": (lambda folder: saved(folder, torch.ones(3, 3)), "but 1 other matrices (''): name those to take"),
    "a damaged index": (lambda folder: written(folder, b"{", "m.safetensors.index.json"), "is damaged"),
    "no index": (lambda folder: written(folder, b"[1]", "m.safetensors.index.json"), "it has no weight_map"),
    "a shard elsewhere": (lambda folder: index(folder, "../../etc/x.safetensors"), "in the index's folder"),
    "a shard that is missing": (lambda folder: index(folder, "x.safetensors"), "which is not in its folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_the_remedy(case, tmp_path):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=r".") as raised:
        inspect([path])
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("form", "reader"), [("pt", "torchfiles.read_zip"), ("npz", "np.lib.format.read_array")])
def test_too_little_memory_is_no_damage(form, reader, tmp_path, monkeypatch):
    path = saved(tmp_path, {"a.weight": torch.eye(3)}) if form == "pt" else tmp_path / "m.npz"
    if form == "npz":
        np.savez(path, **{"a.weight": np.eye(3)})
    monkeypatch.setattr(f"specreg.autopsy.formats.{reader}", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        inspect([path])


def test_names_that_match_nothing_are_errors_that_list_the_layers(tmp_path):
    path = saved(tmp_path, {"a\x1b[2J.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)})
    for option in ("only", "skip", "transposed"):
        with pytest.raises(ValueError, match=rf"--{option} 'c' names no layer .*: a�\[2J, b$"):
            open_checkpoint(path, **{option: ["c"]})
    with pytest.raises(ValueError, match="--skip leaves no layer"):
        open_checkpoint(path, skip=["*"])


def test_what_steers_a_terminal_is_replaced():
    assert printable("a\x1b[31m\r\n\x9b\u202eb é层") == "a�[31m����b é层"


def test_one_checkpoint_is_judged_against_a_random_matrix(tmp_path):
    values = lambda part: torch.tensor([1.0] + [part] * 31)  # noqa: E731
    # A random 32 x 96 matrix has a bulk near 0.8.
    weights = {
        "random": torch.randn(32, 96),
        "reduced": matrix_with_spectrum(values(0.4), 32, 96).float(),
        "collapsed": matrix_with_spectrum(values(0.1), 32, 96).float(),
        "vector": torch.randn(1, 32),
        "zero": torch.zeros(3, 4),
        "poisoned": torch.tensor([[1.0, float("inf")], [0.0, 1.0]]),
    }
    save_file({f"{name}.weight": weight for name, weight in weights.items()}, tmp_path / "m.safetensors")
    found = inspect([tmp_path / "m.safetensors"])
    verdicts = {name: one.verdict for name, one in found.layers[0].items()}
    expected = {"random": "full", "vector": "-", "poisoned": "not finite"}
    assert verdicts == {name: expected.get(name, name) for name in weights}
    assert found.verdict is None
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    by_name = {layer["name"]: layer for layer in plain["checkpoints"][0]["layers"]}
    assert by_name["reduced"]["bulk"] == pytest.approx(0.4, abs=1e-5)
    assert by_name["poisoned"]["singular_values"] is None


def series(folder: Path, levels: list[float], names: list[str]) -> list[Path]:
    torch.manual_seed(1)
    paths = []
    for level, name in zip(levels, names, strict=True):
        state = {
            "still.weight": torch.randn(8, 20),
            "falls.weight": matrix_with_spectrum(torch.tensor([1.0] + [level] * 7), 8, 20).float(),
        }
        save_file(state, folder / name)
        paths.append(folder / name)
    return paths


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [([0.9, 0.3], "collapsed"), ([0.9, 0.85, 0.56], "collapsing"), ([0.9, 0.3, 0.8], "recovered"),
     ([0.9, 0.85, 0.8, 0.75], "steady")],
)  # fmt: skip
def test_several_checkpoints_are_judged_against_their_past(levels, verdict, tmp_path):
    paths = series(tmp_path, levels, [f"v2_{100 * step}.safetensors" for step in range(len(levels))])
    found = inspect(paths)
    assert found.iterations == tuple(100 * step for step in range(len(levels)))
    assert found.series_verdict("still") == "steady"
    assert found.series_verdict("falls") == verdict
    assert found.verdict.state == verdict


def test_a_wide_gap_makes_no_slow_fall_a_fast_one(tmp_path):
    levels, steps = [0.9 - 0.04 * index for index in range(10)] + [0.53], [*range(1000, 11_000, 1000), 50_000]
    paths = series(tmp_path, levels, [f"step_{step}.safetensors" for step in steps])
    for some in (paths, paths[:-1]):
        assert next(iter(inspect(some).verdicts.values())).state == "steady"


def test_a_series_is_judged_by_the_bulks_alone(tmp_path):
    found = inspect(series(tmp_path, [0.9, 0.85, 0.3], [f"step_{step}" for step in range(3)]))
    bare = [{name: replace(one, singular_values=None) for name, one in layers.items()} for layers in found.layers]
    assert judge(found.iterations, bare, found.groups) == found.verdicts


def test_frozen_layers_are_not_counted_among_those_that_do_not_fall(tmp_path):
    # Half of the layers falling by a fifth is a collapse.
    for step, part in ((100, 0.9), (200, 0.9), (300, 0.7)):
        state = {f"body_{i}.weight": level(part) for i in range(3)} | {f"vgg_{i}.weight": level(0.8) for i in range(10)}
        torch.save(state, tmp_path / f"step_{step}")
    found = inspect(sorted(tmp_path.iterdir()))
    assert found.verdict.state == "collapsing"
    assert (found.series_verdict("body_0"), found.series_verdict("vgg_0")) == ("collapsing", "-")
    again = inspect([tmp_path / "step_100", tmp_path / "step_200"])
    assert (again.verdict.state, again.series_verdict("vgg_0")) == ("steady", "steady")  # where no layer moves
    assert again.verdict.message == "steady: the same spectra in all 2 checkpoints (13 of rank > 1 watched)"


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [([0, 0.9, 0.3], "collapsed"), ([0, 0.9, 0.9], "steady"), ([0.9, 0.9, 0], "zero"), ([0.9, 0, 0.9], "steady"),
     ([0, 0, 0], "zero"), ([np.nan, 0.9, 0.3], "not finite")],
)  # fmt: skip
def test_a_layer_that_is_zero_in_one_checkpoint_is_judged_by_the_others(parts, verdict, tmp_path):
    for step, part in enumerate(parts):
        weight = torch.zeros(16, 16) if part == 0 else level(part)
        torch.save({"a.weight": weight, "b.weight": level(0.9 - step / 100)}, tmp_path / f"step_{step}")
    found = inspect(sorted(tmp_path.iterdir()))
    assert found.series_verdict("a") == verdict
    assert found.verdict.state == ("collapsed" if verdict == "collapsed" else "steady")


@pytest.mark.parametrize(
    ("names", "numbers", "by"),
    [
        ("v_epoch=1_step=1000_val_loss=5.9312.ckpt v_epoch=9_step=9000_val_loss=4.1.ckpt v_epoch=12_step=12000_val_loss=4.9999.ckpt", (1000, 9000, 12000), "epochs and steps in the files"),
        ("epoch=1-step=1000.ckpt epoch=2-step=2000-v1.ckpt", (1000, 2000), "epochs and steps in the files"),
        ("m_epoch_1_iter_900.pt m_epoch_2_iter_100.pt", (1, 2), "epochs and steps in the files"),
        ("m_epoch_1_iter_100.pt m_epoch_1_iter_900.pt m_epoch_2_iter_100.pt", (1, 2, 3), "epochs and steps in the files"),
        ("a-epoch=9-loss=3.ckpt a-epoch=10-loss=2.ckpt", (9, 10), "epochs in the files"),
        ("m-fid=30.5-step_500.pt m-fid=9.25-step_1000.pt", (500, 1000), "steps in the files"),
        ("iter_500_seed_2.pth iter_1000_seed_1.pth", (500, 1000), "steps in the files"),
        ("itr500_G_itr500.pth itr1000_G_itr1000.pth", (500, 1000), "steps in the files"),
        ("T_timesteps1000_trainsteps500.pth T_timesteps1000_trainsteps900.pth", (500, 900), "steps in the files"),
        ("9000steps.pt 10000steps.pt", (9000, 10000), "steps in the files"),
        ("G_900k.pth G_1M.pth", (900_000, 1_000_000), "numbers in the files"),
        ("G_2000.pth G_10000.pth", (2000, 10000), "numbers in the files"),
        ("network-snapshot-000200.pkl network-snapshot-001000.pkl", (200, 1000), "numbers in the files"),
        ("G-256x256-2000.pt G-256x256-10000.pt", (2000, 10000), "numbers in the files"),
        ("model.ckpt-200 model.ckpt-1000", (200, 1000), "numbers in the files"),
        ("a2/x_9.pt a1/x_10.pt", (9, 10), "numbers in the files"),
        ("1.mp3 2.mp3", (1, 2), "numbers in the files"),
        ("checkpoint-500/model.safetensors checkpoint-1000/model.safetensors checkpoint-10000/model.safetensors", (500, 1000, 10000), "numbers in their folders"),
        ("c-500/m.safetensors.index.json c-1000/m.safetensors.index.json", None, ""),
        ("checkpoint-500 checkpoint-1000", (500, 1000), "numbers in the files"),
        ("global_step90/states.pt global_step100/states.pt", (90, 100), "steps in their folders"),
        ("epoch=1-step=1000.ckpt epoch=1-step=1000-v1.ckpt", None, ""),
        ("a1/x_9.pt a2/x_9.pt", None, ""),
        ("x_1.pt x.pt", None, ""),
        ("best.pt last.pt", None, ""),
        ("net_d_5000.pth net_d_10000.pth net_d_latest.pth", (5000, 10000, 10001), "numbers in the files"),
        ("5_net_D.pth 10_net_D.pth latest_net_D.pth", (5, 10, 11), "numbers in the files"),
        ("epoch_2nd_00002.pth epoch_2nd_00010.pth", (2, 10), "numbers in the files"),
        ("epoch_1st_00199.pth epoch_2nd_00099.pth", None, ""),
        ("epoch=1.ckpt epoch=2.ckpt last.ckpt", (1, 2, 3), "epochs in the files"),
        ("D_10.pt D_20.pt ema_final.pt", None, ""),
        ("step_100/last.pt step_200/D.pt step_300/D.pt", (100, 200, 300), "steps in their folders"),
        ("net_v1.pt net_v2.pt", None, ""),
        ("net_5.9312.pt net_4.1.pt", None, ""),
        ("net-fid12.pt net-fid9.pt", None, ""),
        ("2023-01-02.pt 2023-02-01.pt", None, ""),
        ("a_1_7.pt a_2_6.pt", None, ""),
        ("a_1_6.pt a_2_7.pt a_3_5.pt", None, ""),
        ("model_d_3_1200.pth model_d_4_1500.pth", (1200, 1500), "numbers in the files"),
        ("d_3_900.pth d_3_1200.pth d_4_1500.pth", (900, 1200, 1500), "numbers in the files"),
        ("checkpoint-500/unet/x.safetensors checkpoint-1000/unet/x.safetensors", (500, 1000), "numbers in their folders"),
        ("step_5/1/unet/x.pt step_10/1/unet/x.pt", (5, 10), "steps in their folders"),
        ("step_50/checkpoint-2/x.pt step_40/checkpoint-4/x.pt", (2, 4), "numbers in their folders"),
        ("checkpoint-5/a/b/c/x.pt checkpoint-10/a/b/c/x.pt", None, ""),
        ("step=1.pt epoch=2.pt", None, ""),
        ("19c8e357.pt 5c106cde.pt", None, ""),
        ("checkpoint_1714567890123456789.pt checkpoint_1714567890123456790.pt", None, ""),
        ("step_1_1714567890123456789.pt step_2_1714567890123456780.pt", (1, 2), "steps in the files"),
    ],
)  # fmt: skip
def test_the_order_comes_from_the_numbers_of_time_in_the_names(names, numbers, by):
    paths = [Path(name) for name in names.split()]
    for given in (paths, sorted(paths), paths[::-1]):
        order = ordered(given)
        assert order.paths == tuple(given if numbers is None else paths)
        assert order.numbers == (numbers or tuple(range(1, len(paths) + 1)))
        assert order.by == (f"the {by}' names" if by else "")


def test_there_is_no_verdict_where_the_order_is_unknown(tmp_path, capsys):
    paths = series(tmp_path, [0.9, 0.3], ["best.safetensors", "last.safetensors"])
    found = inspect(paths)
    assert (found.order, found.verdict, found.series_verdict("falls")) == ("", None, "-")
    display.autopsy(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 without a verdict" in printed
    assert "do not tell in which order they were written, so there is no verdict" in printed


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_forward_module."]
)
def test_wrappers_of_a_module_rename_nothing(wrapper, tmp_path):
    for step, (first, second) in enumerate((("", ""), (wrapper, ""), ("", wrapper), (wrapper, wrapper))):
        state = {
            f"{first}a.{second}b.weight": level(0.9 if step < 3 else 0.3),
            f"{first}a.{second}b.bias": torch.ones(16),
        }
        torch.save({"model": state}, tmp_path / f"step-{step}.pt")
    found = inspect(sorted(tmp_path.iterdir()))
    assert found.verdict.layers == ("model.a.b",)
    assert found.verdict.state == "collapsed"


def test_names_that_would_be_the_same_without_wrappers_keep_them(tmp_path):
    save_file(
        {"a.weight": torch.eye(2), "module.a.weight": torch.ones(3, 3), "module.b.weight": torch.eye(4)}, tmp_path / "m"
    )
    assert set(inspect([tmp_path / "m"]).layers[0]) == {"a", "b", "module.a"}


def test_checkpoints_are_judged_in_the_order_of_their_training(tmp_path):
    # As a shell gives them: step-1000, step-1500, step-2000, step-500.
    for iteration, part in ((500, 0.9), (1000, 0.88), (1500, 0.3), (2000, 0.25)):
        torch.save({"conv.weight": level(part)}, tmp_path / f"step-{iteration}.pt")
    found = inspect(sorted(tmp_path.iterdir()))
    assert found.iterations == (500, 1000, 1500, 2000)
    assert [path.stem for path in found.paths] == ["step-500", "step-1000", "step-1500", "step-2000"]
    assert found.order == "the steps in the files' names"
    assert [layers["conv"].ratios[1] for layers in found.layers] == pytest.approx([0.9, 0.88, 0.3, 0.25])
    assert (found.verdict.state, found.verdict.since) == ("collapsed", 1000)


BLOCKS = torch.linspace(1, 3, 6).reshape(2, 3)
SCALES = {  # the scale's name, its values, and what it makes of a weight of ones, 200 x 300
    "a tensor's": ("weight_scale", torch.tensor(0.5), torch.full((200, 300), 0.5)),
    "a tensor's, of one number": ("scale_weight", torch.tensor([0.5]), torch.full((200, 300), 0.5)),
    "the rows'": ("weight_scale", torch.arange(1.0, 201), torch.arange(1.0, 201)[:, None].expand(200, 300)),
    "the rows', as a column": ("weight_scale", torch.arange(1.0, 201)[:, None], torch.arange(1.0, 201)[:, None].expand(200, 300)),
    "blocks'": ("weight_scale_inv", BLOCKS, BLOCKS.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :300]),
}  # fmt: skip


def test_a_path_given_twice_is_read_once(tmp_path):
    sound = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    paths = [tmp_path / f"step_{step}.pt" for step in (100, 200, 300)]
    for path, weight in zip(paths, (sound, sound, sound * 0.02 + 1), strict=True):
        torch.save({"conv.weight": weight}, path)
    found = inspect([*paths, *paths[1:]])
    assert found.paths == tuple(paths)
    assert found.verdict.state == "collapsed"


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_of_eight_bits_are_multiplied_with_their_scale(case, form, tmp_path):
    name, scale, factor = SCALES[case]
    weight = torch.randn(200, 300).to(torch.float8_e4m3fn)
    state = {"a.weight": weight, f"a.{name}": scale, "a.input_scale": torch.ones(()), "b.weight": torch.eye(2)}
    save_file(state, tmp_path / "m") if form == "safetensors" else torch.save(state, tmp_path / "m")
    found = inspect([tmp_path / "m"])
    expected = spectrum_of(weight.float() * factor)
    np.testing.assert_allclose(found.layers[0]["a"].singular_values, expected, atol=2e-5 * expected[0])
    assert found.notes == ()


def test_each_weight_of_eight_bits_has_its_own_scale(tmp_path):
    for count in (2, 40):  # few and many in one module
        state = {f"w{i}_weight": torch.eye(3).to(torch.float8_e4m3fn) for i in range(count)}
        state |= {f"w{i}_weight_scale": torch.tensor(float(i)) for i in range(count)}
        layers = inspect([saved(tmp_path, state)]).layers[0]
        assert [one.statistics["largest"] for one in layers.values()] == pytest.approx(range(count))


@pytest.mark.parametrize(
    "scales",
    [
        {"weight_scale": torch.ones(7)},
        {"weight_scale": torch.ones(8, 5)},
        {"weight_scale": torch.ones(8, 12, dtype=torch.uint8)},
        {"weight_scale": torch.ones(8), "weight_scale_2": torch.ones(())},
        {"scale": torch.ones(8)},
        {"weight.scale": torch.ones(8)},
        {"weight_scaling_factor": torch.ones(8)},
    ],
)
def test_weights_whose_scale_is_not_known_are_left_out(scales, tmp_path):
    state = {"a.weight": torch.ones(8, 12).to(torch.float8_e5m2), "b.weight": torch.eye(2)}
    found = inspect([saved(tmp_path, state | {f"a.{name}": scale for name, scale in scales.items()})])
    assert "a" not in found.layers[0]
    assert "1 of eight bits with scales of an unknown kind" in found.notes[0]


@pytest.mark.parametrize("shape", [(1,), (3, 5), (8, 1)])
@pytest.mark.parametrize("name", ["a.weight", "a.parametrizations.weight.original1"])
def test_a_tensor_without_a_name_belongs_to_no_weight(name, shape, tmp_path):
    state = {"": torch.full(shape, 100.0), name: torch.randn(8, 6)}
    weights = {weight.name: weight for weight in open_checkpoint(saved(tmp_path, state)).weights}
    torch.testing.assert_close(weights["a"].read(), state[name], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [".weight_scale", "weight_scale.b", "..scale"])
@pytest.mark.parametrize("name", ["weight", "", "."])
def test_names_with_dots_at_their_beginning_are_read(name, scale, tmp_path):
    tensors = {name: torch.ones(8, 6).to(torch.float8_e5m2), scale: torch.ones(1), "a.weight": torch.randn(8, 6)}
    save_file(tensors, tmp_path / "m.safetensors")
    assert "a" in inspect([tmp_path / "m.safetensors"]).layers[0]


def test_what_cannot_be_a_weight_is_counted_by_reason(tmp_path):
    with quiet():
        tensors = {
            "quantized": torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "sparse": torch.eye(3).to_sparse(),
            "sparse too": torch.eye(3).to_sparse_csr(), "meta": torch.empty(3, 3, device="meta"),
            "complex": torch.eye(3, dtype=torch.complex64), "integers": torch.ones(3, 3, dtype=torch.int8),
            "view": torch.ones(1).expand(9, 9), "nested": torch.nested.nested_tensor([torch.eye(2), torch.eye(3)]),
        }  # fmt: skip
        torch.save(
            {f"{name}.weight": tensor for name, tensor in tensors.items()} | {"step": torch.ones(())}, tmp_path / "m.pt"
        )
    with pytest.raises(ValueError, match="holds no weight matrix, but tensors that are left out") as raised:
        inspect([tmp_path / "m.pt"])
    for said in (
        "1 quantized", "2 sparse", "1 without values, on the device meta", "1 of complex numbers", "1 of integers",
        "1 views larger than their storage", "1 nested", "quantized: save model.dequantize()", "sparse: save their .to_dense()",
    ):  # fmt: skip
        assert said in str(raised.value)
    assert "--only" not in str(raised.value)


@pytest.mark.parametrize("ending", ["pt", "safetensors", "pkl", "npz"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int64"])
def test_a_mask_of_integers_is_applied(ending, dtype, tmp_path):
    mask, weight = (torch.rand(6, 9) > 0.5).numpy(), torch.randn(6, 9)
    arrays, path = {"a.weight_orig": weight.numpy(), "a.weight_mask": mask.astype(dtype)}, tmp_path / f"m.{ending}"
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save = {
        "pt": lambda: torch.save(state, path),
        "safetensors": lambda: save_file(state, path),
        "pkl": lambda: path.write_bytes(pickle.dumps(arrays)),
        "npz": lambda: np.savez(path, **arrays),
    }
    save[ending]()
    found = inspect([path]).layers[0]["a"]
    np.testing.assert_allclose(found.singular_values, spectrum_of(weight * torch.from_numpy(mask)), atol=1e-4)


def test_parts_that_do_not_fit_each_other_are_left_out_and_counted(tmp_path):
    parts = {f"fc.parametrizations.weight.original{index}": torch.randn(8, 8 * (index + 1) // 2) for index in (0, 1)}
    found = inspect([saved(tmp_path, parts | {"b.weight": torch.randn(6, 9)})])
    assert list(found.layers[0]) == ["b"]
    assert found.notes[0].endswith("1 of parts that do not fit each other")


@pytest.mark.parametrize("num", [1, 40])
def test_a_pictures_title_and_legend_lie_on_it_whole(num, tmp_path, monkeypatch):
    paths = [tmp_path / f"step-{step}.pt" for step in range(1, num + 1)]
    for path in paths:
        torch.save({"a.weight": torch.randn(6, 9)}, path)
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **named: figures.append(self))
    save(inspect(paths), tmp_path / "spectra.png")
    (figure,) = figures
    FigureCanvasAgg(figure).draw()
    whole = figure.bbox
    for shown in (figure._suptitle, *figure.legends):
        box = shown.get_window_extent()
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1:] == [str(num)] if num > 1 else True


def kinds_of_weights() -> dict[str, torch.Tensor]:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    blur = torch.outer(row, row) / 64
    return {
        "g.conv.weight": torch.randn(1, 24, 16, 3, 3), "g.conv.modulation.weight": torch.randn(16, 8),
        "g.rgb.weight": torch.randn(1, 3, 6, 1, 1), "g.rgb.modulation.weight": torch.randn(6, 8),
        "g.rgb.style.fc.weight": torch.randn(6, 8), "g.conv.blur.kernel": blur, "g.conv.noise.weight": torch.zeros(1),
        "g.ada.weight": torch.randn(8, 16, 3, 3), "g.ada.affine.weight": torch.randn(16, 8),
        "d.bank.weight": torch.randn(4, 24, 16, 3, 3), "d.video.weight": torch.randn(6, 4, 3, 3, 3),
        "d.head.weight": torch.randn(1, 24, 4, 4, 4), "d.dw.weight": torch.randn(64, 1, 3, 3),
        "d.down.weight": blur.expand(64, 1, 4, 4).clone(), "d.filter.weight": torch.randn(9, 1, 4),
        "d.blur.kernel": blur.expand(64, 1, 4, 4).clone(), "d.bn.embed.weight": torch.ones(10, 32),
        "d.bn.gamma.weight": torch.ones(10, 32), "d.l_y.weight": torch.randn(10, 32), "d.fc.weight": torch.randn(1, 32),
        "d.vq.codebook.weight": torch.randn(64, 8), "d.flat.weight": torch.randn(1, 9, 16, 1, 2),
    }  # fmt: skip


def test_matrices_are_what_the_network_multiplies_with(tmp_path):
    state = kinds_of_weights()
    found = inspect([saved(tmp_path, state)])
    matrices = {name: one.matrix for name, one in found.layers[0].items()}
    assert matrices == {
        "g.conv": (24, 144), "g.conv.modulation": (16, 8), "g.rgb": (3, 6), "g.rgb.modulation": (6, 8),
        "g.rgb.style.fc": (6, 8), "g.ada": (8, 144), "g.ada.affine": (16, 8), "d.bank.0": (24, 144),
        "d.bank.1": (24, 144), "d.bank.2": (24, 144), "d.bank.3": (24, 144), "d.video": (6, 108), "d.head": (1, 1536),
        "d.dw": (64, 9), "d.bn.embed": (10, 32), "d.bn.gamma": (10, 32), "d.l_y": (10, 32), "d.fc": (1, 32),
        "d.vq.codebook": (64, 8), "d.flat": (1, 288),
    }  # fmt: skip
    unjudged = {name for name, one in found.layers[0].items() if one.verdict == "-"}
    assert unjudged == {"d.dw", "d.bn.embed", "d.bn.gamma", "d.l_y", "d.fc", "d.head", "d.vq.codebook", "d.flat"}
    assert found.layers[0]["d.dw"].statistics is not None
    np.testing.assert_allclose(
        found.layers[0]["g.conv"].singular_values, spectrum_of(state["g.conv.weight"][0]), rtol=1e-4
    )
    np.testing.assert_allclose(
        found.layers[0]["d.bank.2"].singular_values, spectrum_of(state["d.bank.weight"][2]), rtol=1e-4
    )
    assert "4 fixed filters" in found.notes[0]
    only = inspect([tmp_path / "m.pt"], only=["d.bank", "d.blur.kernel"])
    assert list(only.layers[0]) == ["d.bank.0", "d.bank.1", "d.bank.2", "d.bank.3", "d.blur.kernel"]


def test_the_layers_without_a_verdict_are_counted(tmp_path, capsys):
    kept = ("ada", "dw", "l_y", "fc", "head")
    state = {name[2:]: value for name, value in kinds_of_weights().items() if name.split(".")[1] in kept}
    display.autopsy(inspect([saved(tmp_path, state)]))
    assert "\n2 full, 4 without a verdict\n" in capsys.readouterr().out


def test_filters_of_eight_bits_are_told_from_weights(tmp_path):
    state = {
        "a.weight": torch.randn(9, 1, 3, 3),
        "b.weight": torch.ones(9, 1, 3, 3),
        "c.weight": torch.randn(4, 3, 2, 2, 2),
    }
    found = inspect([saved(tmp_path, {name: value.to(torch.float8_e4m3fn) for name, value in state.items()})])
    assert list(found.layers[0]) == ["a", "c"]
    assert "1 fixed filters" in found.notes[0]


def test_a_bank_of_many_kernels_is_left_out(tmp_path):
    path = saved(tmp_path, {"a.weight": torch.zeros(65, 2, 9, 1, 1), "b.weight": torch.eye(2)})
    assert "1 banks of more than 64 kernels" in inspect([path]).notes[0]


def test_the_networks_in_a_file_are_judged_one_by_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    # Half of the layers falling by a fifth is a collapse, where those of another network are not counted with them.
    for step, part in ((100, 0.9), (200, 0.9), (300, 0.7)):
        networks = {"generator": (3, 0.9), "mpd": (3, part), "scale": (1, 0.9)}
        state = {f"{name}.{i}.weight": level(value) for name, (count, value) in networks.items() for i in range(count)}
        torch.save(state, tmp_path / f"do_{step}")
    found = inspect(sorted(tmp_path.iterdir()))
    assert {group: verdict.state for group, verdict in found.verdicts.items()} == {
        "generator": "steady", "mpd": "collapsing", "": "steady",
    }  # fmt: skip
    assert found.verdict.state == "collapsing"
    plain = found.to_dict()
    assert plain["groups"] == {name: [f"{name}.{i}" for i in range(3)] for name in ("generator", "mpd")} | {
        "": ["scale.0"]
    }
    assert plain["verdict"]["by_group"]["generator"]["state"] == "steady"
    assert plain["verdict"]["by_layer"]["mpd.0"] == "collapsing"
    for paths in (found.paths, found.paths[:1]):
        display.autopsy(inspect(paths))
        lines = capsys.readouterr().out.splitlines()
        heads = [lines.index(head) for head in ("generator:", "mpd:", "(other layers):")]
        assert heads == sorted(heads)
        assert not any(line.startswith(("mpd.", "scale.")) for line in lines[heads[0] : heads[1]])
        assert any(line.startswith("mpd.2") for line in lines[heads[1] : heads[2]])
        assert max(map(len, lines)) <= 80


def test_the_networks_of_an_average_beside_the_model_are_judged_one_by_one(tmp_path):
    nets = {f"{net}.{i}.weight": torch.randn(4, 4) for net in ("D", "G") for i in range(2)}
    copies = {"state_dict": nets, "ema_state_dict": {name: weight.clone() for name, weight in nets.items()}}
    expected = {f"{copy}.{net}": tuple(f"{copy}.{net}.{i}" for i in range(2)) for copy in copies for net in ("D", "G")}
    assert inspect([saved(tmp_path, copies)]).groups == expected
    single = {copy: {name.removeprefix("D."): net for name, net in nets.items() if "D." in name} for copy in copies}
    assert list(inspect([saved(tmp_path, single)]).groups) == list(copies)


def test_checkpoints_of_different_models_are_told_apart(tmp_path):
    for name, state in {
        "a": {"x": (3, 4), "y": (3, 4)},
        "b": {"x": (3, 4)},
        "c": {"x": (4, 4)},
        "d": {"z": (3, 4)},
    }.items():
        save_file({f"{key}.weight": torch.randn(shape) for key, shape in state.items()}, tmp_path / name)
    found = inspect([tmp_path / "a", tmp_path / "b"])
    assert list(found.layers[0]) == list(found.layers[1]) == ["x"]
    assert found.notes[0].endswith("1 layers that not all checkpoints hold")
    with pytest.raises(ValueError, match=r"layer 'x' has the shape \(4, 4\) in .*c but \(3, 4\) in .*a: give"):
        inspect([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(ValueError, match="no layer is in all 2 checkpoints"):
        inspect([tmp_path / "a", tmp_path / "d"])


def test_pictures_take_hostile_names_and_overwrite_nothing(tmp_path):
    save_file(
        {"$\\frac$\x1b[1m层.weight": torch.randn(4, 5), "b.weight": torch.randn(1, 5)}, tmp_path / "m.safetensors"
    )
    found = inspect([tmp_path / "m.safetensors"])
    save(found, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size[0] > 300
    with pytest.raises(FileExistsError):
        save(found, tmp_path / "p.png")
    save(found, tmp_path / "p.svg")
    assert "\x1b" not in (tmp_path / "p.svg").read_text(encoding="utf-8")

"""The verbs on modules as people build them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import specreg
from kinds import LAYERS, example_input, layout, set_spectrum
from specreg.layers.find import find
from specreg.regularizers.compensators import Compensator, Scheme
from specreg.spectra.matrices import to_matrix

VERBS = {
    "spectral_norm": specreg.spectral_norm,
    "static": lambda module, **given: specreg.static_compensation(module, **given).step(),
    "dynamic": lambda module, **given: specreg.dynamic_compensation(module, **{"start": 0} | given).step(),
    "regularization": specreg.spectral_regularization,
    "orthogonalization": specreg.orthogonalize,
}
SPECTRAL_NORMS = {"new": specreg.spectral_norm, "legacy": torch.nn.utils.spectral_norm}
WEIGHT_NORMS = {"new": parametrizations.weight_norm, "legacy": torch.nn.utils.weight_norm}


def discriminator() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 1)
    )


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 6, 6)


def buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def spectrum_used(layer: nn.Module) -> torch.Tensor:
    """Singular values of the weight that the layer uses in eval mode, of its first group."""
    layer.eval()
    matrix = to_matrix(layer.weight.detach(), **layout(layer)).double()
    return torch.linalg.svdvals(matrix if matrix.ndim == 2 else matrix[0])


# --- which layers -----------------------------------------------------------------------------------------------


def test_only_and_skip_take_names_globs_classes_and_predicates():
    module = nn.ModuleDict({"body": nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(2, 2)), "head": nn.Linear(2, 1)})
    names = lambda **given: list(find(module, **given))  # noqa: E731
    assert names() == ["body.0", "body.1", "head"]
    assert names(only="head") == ["head"]
    assert names(only="body") == ["body.0", "body.1"]
    assert names(only="*.1") == ["body.1"]
    assert names(only=nn.Linear) == ["body.1", "head"]
    assert names(only=[nn.Conv1d, "head"]) == ["body.0", "head"]
    assert names(only=lambda name, layer: layer.weight.shape[0] == 1) == ["head"]
    assert names(skip=[nn.Linear]) == ["body.0"]
    assert names(only=nn.Linear, skip="body") == ["head"]


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_match_is_an_error_that_lists_what_is_there(verb):
    with pytest.raises(ValueError, match=r"no layer matched .*Conv1d.*: the layers are 0 \(Linear\)"):
        verb(nn.Sequential(nn.Linear(2, 2)), only=nn.Conv1d)
    with pytest.raises(ValueError, match=r"2 x ReLU.*specreg takes convolutions"):
        verb(nn.Sequential(nn.ReLU(), nn.ReLU()))
    with pytest.raises(ValueError, match=r"skip='haed' names no layer; the layers are: 0"):
        verb(nn.Sequential(nn.Linear(2, 2)), skip="haed")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got int"):
        verb(3)


@pytest.mark.parametrize(
    ("take", "by_default"),
    [
        (specreg.spectral_norm, True),
        (specreg.spectra, True),
        (lambda module, **given: specreg.Monitor(module, **given).layers, True),
        (lambda module, **given: specreg.static_compensation(module, **given).layers, False),
        (lambda module, **given: specreg.dynamic_compensation(module, **given).layers, False),
        (specreg.spectral_regularization, False),
        (specreg.orthogonalize, False),
    ],
    ids=["spectral_norm", "spectra", "monitor", "static", "dynamic", "regularization", "orthogonalization"],
)
def test_embeddings_are_taken_by_default_where_that_is_said_and_by_all_if_they_are_named(take, by_default):
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    for only in ("0", nn.Embedding):
        assert list(take(copy.deepcopy(module), only=only)) == ["0"]
    assert list(take(module)) == (["0", "1"] if by_default else ["1"])


@pytest.mark.parametrize("name", ["_original_module", "_forward_module"])
def test_a_child_that_is_named_as_one_of_fabrics_is_a_child(name):
    module = nn.Module()
    module.add_module(name, nn.ModuleDict({"head": nn.Linear(4, 4)}))
    module.head = nn.Linear(4, 1)
    assert list(specreg.spectra(module)) == [f"{name}.head", "head"]


@pytest.mark.parametrize("verb", [specreg.spectra, specreg.static_compensation, specreg.spectral_norm, specreg.Monitor])
def test_a_scripted_part_is_left_out(verb):
    module = nn.ModuleDict({"features": torch.jit.script(nn.Linear(4, 4)), "head": nn.Linear(4, 2)})
    verb(module)
    assert list(find(module)) == ["head"]


def test_names_do_not_change_under_wrappers():
    module = discriminator()
    assert list(find(nn.DataParallel(module))) == list(find(module))
    assert list(find(torch.compile(module))) == list(find(module))
    module[0] = torch.compile(module[0])
    module[2] = checkpoint_wrapper(module[2])
    assert list(find(module)) == ["0", "2", "5"]


def test_a_wrapped_layer_that_is_parametrized_is_found_once_and_can_be_made_plain():
    module = discriminator()
    specreg.spectral_norm(module)
    weights = {name: layer.weight.used().detach().clone() for name, layer in find(module).items()}
    module[0], module[2] = torch.compile(module[0]), checkpoint_wrapper(module[2])
    assert find(module).left_out.not_covered == ()
    assert specreg.remove(module) == ["0.weight", "2.weight", "5.weight"]
    for name, layer in find(module).items():
        assert torch.allclose(layer.weight.used(), weights[name], atol=1e-6)


# --- spectral normalization -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_spectral_norm_is_torchs_parametrization(kind):
    ours, theirs = LAYERS[kind](), LAYERS[kind]()
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    specreg.spectral_norm(ours)
    torch.manual_seed(1)
    parametrizations.spectral_norm(theirs)
    assert_same(dict(theirs.state_dict()), dict(ours.state_dict()))
    x = example_input(ours)
    for layer in (ours, theirs):
        layer(x).sum().backward()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.parametrizations.weight.original.grad, theirs.parametrizations.weight.original.grad)


def test_spectral_norm_twice_changes_nothing():
    module = discriminator()
    specreg.spectral_norm(module)
    keys = list(module.state_dict())
    assert list(specreg.spectral_norm(module)) == ["0", "2", "5"]
    assert list(module.state_dict()) == keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_a_zero_weight_of_any_precision_is_normalized_once_it_moves(dtype):
    layer = nn.Linear(6, 4, bias=False, dtype=dtype)
    nn.init.zeros_(layer.weight)
    specreg.spectral_norm(layer)
    x = torch.ones(2, 6, dtype=dtype)
    assert torch.equal(layer(x), torch.zeros(2, 4, dtype=dtype))
    original = layer.parametrizations.weight.original
    layer(x).real.sum().backward()
    original.data -= original.grad  # each is 2
    for _ in range(20):
        layer(x)
    torch.testing.assert_close(layer.weight.abs().float(), torch.full((4, 6), 24**-0.5), rtol=5e-3, atol=0)


@pytest.mark.parametrize(("size", "dtype"), [(1e-13, torch.float32), (3e-5, torch.float16)])
def test_a_tiny_weight_is_normalized_to_one(size, dtype):
    layer = nn.Linear(4, 4, bias=False, dtype=dtype)
    specreg.spectral_norm(layer)
    layer.parametrizations.weight.original.data.copy_(size * torch.eye(4))
    for _ in range(5):
        assert torch.linalg.matrix_norm(layer.weight.float(), 2).item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("verb", [specreg.spectral_norm, specreg.spectral_regularization, specreg.orthogonalize])
def test_a_normalized_module_computes_shapes_on_the_meta_device(verb):
    module = discriminator()
    verb(module)
    assert module.to("meta")(images().to("meta")).shape == discriminator()(images()).shape


@pytest.mark.parametrize("verb", VERBS)
def test_the_default_device_is_not_that_of_the_network(verb):
    module, x = discriminator(), images(600)
    with torch.device("meta"):  # where nothing can be computed; torch.set_default_device("cuda") is what is meant
        VERBS[verb](module)
        monitor = specreg.Monitor(module, samples=lambda: (x, x))
        assert monitor.step(1).signal.state == "teaching"
        assert specreg.spectra(module).keys() == {"0", "2", "5"}
        specreg.attainment(module, x[:2])
        specreg.diversity(x[:9], x)
        (module(x).mean() + specreg.orthogonality_penalty(module) + specreg.spectral_penalty(module)).backward()
        specreg.remove(module)
    assert module(x).isfinite().all()


@pytest.mark.parametrize("normalize", [specreg.spectral_norm, specreg.spectral_regularization])
def test_under_autocast_s1_is_computed_in_the_weights_precision(normalize):
    layer = nn.Linear(64, 32)
    normalize(layer)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(100):
            weight = layer.weight
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    assert weight.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.matrix_norm(weight.detach(), 2).item(), 1.0, rtol=1e-5, atol=0)


@pytest.mark.parametrize("normalize", [lambda child, name: child, torch.nn.utils.parametrizations.spectral_norm])
def test_weights_of_classes_that_nothing_is_known_of_are_reported(normalize):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.shift = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(1, 4))

    report = specreg.spectral_norm(nn.ModuleDict({"own": normalize(Own(), "table"), "head": nn.Linear(4, 1)}))
    assert list(report) == ["head"]
    assert report.left_out.not_covered == ("own.table",)
    assert str(report).splitlines()[-1] == "left out, of no known layer (specreg.register takes its class): own.table"


@pytest.mark.parametrize("verb", [specreg.spectral_norm, specreg.spectral_regularization, specreg.orthogonalize])
def test_a_refused_layer_leaves_the_others_untouched(verb):
    module = nn.Sequential(nn.Linear(3, 3), torch.nn.utils.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"layer '1' is under the legacy weight_norm.*specreg\.remove"):
        verb(module)
    assert not parametrize.is_parametrized(module[0])


# --- compensation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["new", "legacy"])
@pytest.mark.parametrize("rows", [1, 6])
def test_weight_norm_with_zero_rows_stays_finite(version, rows):
    layer = WEIGHT_NORMS[version](nn.Linear(6, 6))
    g = layer.weight_g if version == "legacy" else layer.parametrizations.weight.original0
    g.data[:rows] = 0
    compensator = specreg.static_compensation(layer, every=1)
    for _ in range(2):
        compensator.step()
        assert layer(torch.randn(2, 6)).isfinite().all()
    assert rows == 6 or compensator.satisfied()


@pytest.mark.parametrize("version", ["new", "legacy"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_weight_norm_of_any_scale_is_compensated_alike(version, size):
    layers = []
    for factor in (1.0, size):
        torch.manual_seed(0)
        layers.append(WEIGHT_NORMS[version](nn.Linear(4, 4, bias=False)))
        g = layers[-1].weight_g if version == "legacy" else layers[-1].parametrizations.weight.original0
        g.data.mul_(factor)
        specreg.static_compensation(layers[-1]).step()
        layers[-1](torch.ones(1, 4))
    torch.testing.assert_close(layers[1].weight / size, layers[0].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("apply", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_spectral_norm_over_another_dimension_stays_converged(apply):
    layer = nn.Conv1d(8, 8, 1)
    apply(layer, dim=1)
    specreg.static_compensation(layer, keep=4).step()
    torch.testing.assert_close(spectrum_used(layer)[0].item(), 1.0, rtol=1e-5, atol=0)


def test_what_is_put_on_a_layer_later_is_noticed():
    module = discriminator()
    compensator = specreg.static_compensation(module, every=1)
    prune.random_unstructured(module[2], "weight", amount=0.5)
    with pytest.raises(ValueError, match="layer '2' is under a hook that derives its weight"):
        compensator.step()
    assert compensator.calls == 0
    prune.remove(module[2], "weight")
    parametrizations.orthogonal(module[2])
    with pytest.raises(ValueError, match="layer '2' is under _Orthogonal"):
        compensator.step()


@pytest.mark.parametrize(
    "apply",
    [lambda layer: None, specreg.spectral_norm, specreg.spectral_regularization],
    ids=["bare", "normalized", "regularized"],
)
def test_a_weight_that_is_a_buffer_is_compensated(apply):
    layer = nn.Linear(8, 6)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    apply(layer)
    compensator = specreg.static_compensation(layer)
    assert compensator.step()
    assert compensator.satisfied()


@pytest.mark.parametrize(
    ("normalize", "part", "tensor"),
    [
        (parametrizations.spectral_norm, "parametrizations.weight", "original"),
        (parametrizations.weight_norm, "parametrizations.weight", "original1"),
        (nn.utils.spectral_norm, "", "weight_orig"),
        (nn.utils.weight_norm, "", "weight_v"),
    ],
    ids=["spectral", "weight", "legacy-spectral", "legacy-weight"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_what_pruning_derives_below_a_normalization_is_not_written(normalize, part, tensor):
    layer = normalize(nn.Linear(8, 6))
    prune.l1_unstructured(layer.get_submodule(part), tensor, amount=0.3)
    layer(torch.randn(2, 8))
    with pytest.raises(ValueError, match="pruning"):
        specreg.static_compensation(layer)


def test_a_failed_step_does_not_count():
    module = discriminator()
    compensator = specreg.static_compensation(module)
    good = module[0].weight.detach().clone()
    module[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="layer '0'"):
        compensator.step()
    with pytest.raises(ValueError, match="layer '0'"):
        compensator.satisfied()
    module[0].weight.data.copy_(good)
    assert compensator.step()


def test_satisfied_tells_before_from_after():
    module = discriminator()
    compensator = specreg.static_compensation(module, scale="keep")
    assert not compensator.satisfied()
    compensator.step()
    assert compensator.satisfied()
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert compensator.satisfied()  # a scheme about ratios
    compensator.remove()
    unit = specreg.static_compensation(module, scale="unit")
    assert not unit.satisfied()
    unit.step()
    assert unit.satisfied()


def test_dynamic_is_unsatisfied_after_a_collapse_and_undoes_it():
    layer = nn.Linear(4, 4)
    set_spectrum(layer, lambda r: torch.tensor([2.0, 1.8, 1.6, 1.4]))
    compensator = specreg.dynamic_compensation(layer, every=1, start=0)
    compensator.step()
    set_spectrum(layer, lambda r: torch.tensor([3.0, 0.3, 0.2, 0.1]))
    assert not compensator.satisfied()
    compensator.step()
    assert compensator.satisfied()
    expected = 3 * torch.tensor([1.0, 0.9, 0.8, 0.7], dtype=torch.float64)
    torch.testing.assert_close(specreg.spectra(layer)[""], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("keep", "raised"), [(2, 2), (3, 3), (99, 8), (0.5, 4), (0.49, 4), (0.37, 3), (0.01, 1), (1.0, 8)]
)
def test_keep_is_a_fraction_or_an_integer(keep, raised):
    layer = nn.Linear(8, 8)
    set_spectrum(layer, lambda r: torch.linspace(2, 1, r).double())
    specreg.static_compensation(layer, keep=keep).step()
    ratios = specreg.spectra(layer, normalized=True)[""]
    assert int((ratios > 1 - 1e-6).sum()) == raised


@pytest.mark.parametrize(
    ("option", "value"),
    [("keep", -1), ("keep", 0), ("keep", 1.5), ("keep", True), ("keep", "0.5"), ("keep", float("nan")),
     ("every", 0), ("every", 2.5), ("scale", "half")],
)  # fmt: skip
def test_bad_options_are_named_with_their_value(option, value):
    with pytest.raises(ValueError, match=rf"{option} must .*got {value!r}"):
        specreg.static_compensation(nn.Linear(2, 2), **{option: value})


@pytest.mark.parametrize("version", WEIGHT_NORMS)
@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv1d-transposed", "conv2d-grouped"])
def test_weight_norm_uses_the_compensated_weight(kind, dim, version):
    layer = LAYERS[kind]()
    plain = copy.deepcopy(layer)
    layer = WEIGHT_NORMS[version](layer, dim=dim)
    with torch.no_grad():  # a training has moved g
        for name, parameter in layer.named_parameters():
            if name.endswith(("weight_g", "original0")):
                parameter.mul_(1.3)
    plain.weight.data.mul_(1.3)
    for module in (layer, plain):
        specreg.static_compensation(module, keep=2).step()
    torch.testing.assert_close(layer.weight, plain.weight, rtol=1e-5, atol=1e-6)
    x = example_input(plain)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", SPECTRAL_NORMS)
@pytest.mark.parametrize(
    "kind",
    ["linear", "conv1d", "conv1d-transposed", "conv2d-grouped", "conv2d-transposed-grouped", "conv2d-transposed"],
)
def test_spectral_norm_uses_the_compensated_weight_and_stays_torchs(kind, version):
    layer = LAYERS[kind]()
    SPECTRAL_NORMS[version](layer)
    compensator = specreg.static_compensation(layer, keep=2, every=1)
    for _ in range(2):
        with torch.no_grad():  # as an optimizer moves them
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        layer.train()
        layer(example_input(layer))
        compensator.step()
        assert compensator.satisfied()
        for when in ("at once", "after a forward pass"):
            used = spectrum_used(layer)
            torch.testing.assert_close(used[1].item(), used[0].item(), rtol=1e-5, atol=0, msg=when)
            layer(example_input(layer))
        stacked = layer.weight.detach().movedim(layout(layer)["output_dim"], 0).flatten(1)
        torch.testing.assert_close(torch.linalg.matrix_norm(stacked, ord=2).item(), 1.0, rtol=1e-5, atol=0)


def test_unknown_parametrizations_are_several_layers_that_are_read_but_not_written():
    module = nn.Sequential(*(parametrizations.orthogonal(nn.Linear(4, 4)) for _ in range(3)))
    spectra = specreg.spectra(module)
    assert list(spectra) == ["0", "1", "2"]
    torch.testing.assert_close(spectra["0"], torch.ones(4).double(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"layer '0' is under _Orthogonal.*skip='0'"):
        specreg.static_compensation(module)


def test_spectral_norm_and_compensation_over_weight_norm():
    layer = parametrizations.weight_norm(nn.Conv1d(3, 6, 5))
    specreg.spectral_norm(layer)
    compensator = specreg.static_compensation(layer, keep=3)
    compensator.step()
    assert compensator.satisfied()
    torch.testing.assert_close(spectrum_used(layer)[:3], torch.ones(3).double(), rtol=1e-5, atol=0)


def test_a_shared_weight_is_handled_once():
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    module["b"].weight = module["a"].weight
    assert list(specreg.spectra(module)) == ["a", "c"]
    assert list(specreg.spectral_norm(module)) == ["a", "c"]
    assert parametrize.is_parametrized(module["b"])
    halved = Scheme("halved", lambda s, memory: torch.cat([s[..., :1], s[..., 1:] / 2], -1))
    compensator = Compensator(find(module), halved, every=1, scale="keep")
    assert list(compensator.layers) == ["a", "c"]
    assert "shared with b" in str(compensator.layers)
    before = specreg.spectra(module)["a"]
    compensator.step()
    after = specreg.spectra(module)["a"]
    torch.testing.assert_close(after[1], before[1] / 2)  # once, not twice
    for name in ("a", "b"):
        torch.testing.assert_close(spectrum_used(module[name])[0].item(), 1.0, rtol=1e-5, atol=0)


def test_what_shares_a_weight_no_more_is_not_overwritten():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[1].weight = module[0].weight
    compensator = specreg.static_compensation(module, every=1)
    module.load_state_dict(module.state_dict(), assign=True)  # two parameters now, of one memory
    assert compensator.step()
    assert torch.equal(module[0].weight, module[1].weight)
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}, assign=True)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="layers '0' and '1' shared a weight when they were found, and share none now"):
        compensator.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_channels_last_is_kept():
    module = discriminator().to(memory_format=torch.channels_last)
    specreg.spectral_norm(module)
    specreg.static_compensation(module).step()
    weight = module[2].parametrizations.weight.original
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fill", ["zero", "rank-one"])
def test_degenerate_weights_stay_finite(kind, verb, fill):
    layer = LAYERS[kind]()
    nn.init.zeros_(layer.weight) if fill == "zero" else nn.init.ones_(layer.weight)
    VERBS[verb](layer, only="")
    layer(example_input(layer)).sum().backward()
    assert layer.weight.isfinite().all()
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(s.isfinite().all() for s in specreg.spectra(layer, normalized=True).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_nan_and_inf_are_named_by_layer_and_nothing_is_changed(verb, value):
    module = discriminator()
    with torch.no_grad():
        module[2].weight[0, 0] = value
    before = module[0].weight.detach().clone()
    with pytest.raises(ValueError, match="layer '2': the weight holds NaN or inf"):
        verb(module)
    assert torch.equal(module[0].weight, before)
    with pytest.raises(ValueError, match="layer '2'"):
        specreg.spectra(module)


def test_a_state_of_other_layers_is_refused():
    compensator = specreg.dynamic_compensation(nn.Linear(4, 4), start=0)
    compensator.step()
    state = compensator.state_dict()
    with pytest.raises(ValueError, match=r"of the layers \{'': \[1, 4, 4\]\}; these are \{'0': \[1, 8, 27\]"):
        specreg.dynamic_compensation(discriminator()).load_state_dict(state)
    with pytest.raises(ValueError, match=r"\[1, 4, 4\]\}; these are \{'': \[1, 3, 3\]\}"):
        specreg.dynamic_compensation(nn.Linear(3, 3)).load_state_dict(state)
    with pytest.raises(ValueError, match="of the scheme 'dynamic', this is 'static'"):
        specreg.static_compensation(nn.Linear(4, 4)).load_state_dict(state)
    state["record"][""][0] = float("nan")
    with pytest.raises(ValueError, match="has to be finite"):
        specreg.dynamic_compensation(nn.Linear(4, 4)).load_state_dict(state)
    with pytest.raises(ValueError, match="not a compensator's state: it has the keys"):
        compensator.load_state_dict({"gamma": 1})


def test_remove_lets_go_of_the_layers():
    module = discriminator()
    compensator = specreg.static_compensation(module, every=1)
    compensator.remove()
    before = module[0].weight.detach().clone()
    assert compensator.step() is False
    assert len(compensator.layers) == compensator.acted == 0
    assert torch.equal(module[0].weight, before)


# --- the parametrization ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [specreg.spectral_regularization, specreg.orthogonalize])
@pytest.mark.parametrize("normalize", [specreg.spectral_norm, specreg.spectral_regularization, nn.utils.spectral_norm])
def test_layers_that_are_normalized_are_refused(verb, normalize):
    module = nn.Sequential(nn.Linear(3, 3))
    normalize(module[0])
    with pytest.raises(ValueError, match=r"layer '0' is normalized already.*call specreg\.remove on it first"):
        verb(module)


def test_a_regularized_weight_with_nan_is_named():
    module = discriminator()
    specreg.spectral_regularization(module)
    module[2].parametrizations.weight.original.data[0] = float("nan")
    with pytest.raises(ValueError, match="layer '2': the weight holds NaN or inf"):
        module(images())


def test_a_regularized_weight_keeps_channels_last():
    layer = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    specreg.spectral_regularization(layer)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_second_derivative_by_the_weight_raises():
    layer = nn.Linear(4, 4)
    specreg.spectral_regularization(layer)
    original = layer.parametrizations.weight.original
    (gradient,) = torch.autograd.grad(layer.weight.square().sum(), original, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("gradient", ["paper", "exact"])
def test_a_gradient_penalty_on_the_inputs_works(gradient):
    module = discriminator()
    specreg.spectral_regularization(module, gradient=gradient)
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    for name in ("0", "2", "5"):
        slopes = module.get_submodule(name).parametrizations.weight.original.grad
        assert slopes.isfinite().all()
        assert slopes.any()


# --- everything that a training does with a discriminator -------------------------------------------------------

PARAMETRIZED = {"spectral_norm": specreg.spectral_norm, "regularization": specreg.spectral_regularization}


@pytest.mark.parametrize(
    "read", [lambda module: specreg.spectra(module, weight="used"), specreg.orthogonality_penalty], ids=["used", "loss"]
)
def test_a_reading_leaves_nothing_in_the_cache_of_a_training(read):
    module, plain = discriminator(), discriminator()
    specreg.spectral_norm(module)
    specreg.spectral_norm(plain)
    plain.load_state_dict(module.state_dict())
    x = images()
    with parametrize.cached():
        read(module)
        module(x).sum().backward()
    plain(x).sum().backward()
    assert_same(buffers(plain), buffers(module))  # power iteration has made its step
    for own, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)


def test_eval_moves_no_vector_of_power_iteration():
    module = discriminator()
    specreg.spectral_norm(module)
    module.eval()
    before = buffers(module)
    assert len(before) == 6
    scores = module(images())
    assert_same(before, buffers(module))
    module.train()(images())
    scores.sum().backward()  # of the vectors that its own forward pass had


@pytest.mark.parametrize("verb", [*PARAMETRIZED.values(), specreg.orthogonalize])
def test_deepcopy_and_state_dict_round_trip(verb):
    module = discriminator()
    verb(module)
    module(images())
    twin = copy.deepcopy(module)
    other = discriminator()
    verb(other)
    other.load_state_dict(module.state_dict())
    x = images()
    for each in (module, twin, other):
        each.eval()
    assert torch.equal(module(x), twin(x))
    assert torch.equal(module(x), other(x))


@pytest.mark.parametrize("verb", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_an_average_of_the_weights_stays_normalized(verb):
    module = discriminator()
    verb(module)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(module.parameters(), 0.005)
    compensator = specreg.static_compensation(module, every=1)
    for _ in range(10):
        optimizer.zero_grad()
        module(images()).mean().backward()
        optimizer.step()
        compensator.step()
        average.update_parameters(module)  # averages parameters, copies buffers
    for layer in ("0", "2", "5"):
        largest = spectrum_used(average.module.get_submodule(layer))[0].item()
        assert 0.9 < largest < 1.1  # u and v are those of the copy, at most a few steps behind


@pytest.mark.parametrize(
    "around", [lambda f: f, lambda f: torch.compile(f, backend="aot_eager")], ids=["eager", "compiled"]
)
def test_regularization_refuses_transforms_that_would_leave_out_its_gradient(around):
    module = nn.Sequential(nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 1))
    specreg.spectral_regularization(module)

    def penalty(x):
        return torch.func.grad(lambda x: module(x).sum())(x).square().sum()

    with pytest.raises(RuntimeError, match=r"does not support transforms of torch\.func"):
        around(penalty)(torch.randn(4, 6))


def test_an_ensemble_of_orthogonalized_convolutions_is_mapped():
    layers = [nn.Conv2d(3, 4, 3) for _ in range(2)]
    for layer in layers:
        specreg.orthogonalize(layer)
    states = [dict(layer.named_parameters()) for layer in layers]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    x = torch.randn(2, 3, 5, 5)
    outputs = torch.func.vmap(lambda state: torch.func.functional_call(layers[0], state, (x,)))(stacked)
    for layer, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(output, layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("verb", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_torch_compile_of_the_discriminator(verb):
    module = discriminator()
    verb(module)
    plain = copy.deepcopy(module)
    compiled = torch.compile(module, backend="aot_eager")
    pairs = []
    for each, inner in ((compiled, module), (plain, plain)):
        torch.manual_seed(3)
        compensator = specreg.static_compensation(each, every=1)
        optimizer = torch.optim.SGD(inner.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            each(images()).sum().backward()
            optimizer.step()
            compensator.step()
        pairs.append(dict(inner.state_dict()))
    for name, value in pairs[0].items():
        torch.testing.assert_close(value, pairs[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("verb", [specreg.spectral_regularization, specreg.orthogonalize])
def test_checkpointed_layers_have_the_same_gradients(verb):
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
    verb(module)
    plain, (real, fake) = copy.deepcopy(module), torch.randn(2, 8, 12)
    again = lambda x: checkpoint(module, x, use_reentrant=False)  # noqa: E731
    (again(real) - again(fake)).sum().backward()
    (plain(real) - plain(fake)).sum().backward()
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.slow
def test_checkpointed_layers_in_a_compiled_discriminator():
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
    specreg.spectral_norm(module)
    plain = copy.deepcopy(module)
    real, fake = torch.randn(2, 8, 12)
    torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)(real)  # uncheckpointed its graph is whole

    @torch.compile(backend="aot_eager")
    def compiled(x):
        return checkpoint(module, x, use_reentrant=False)

    # The second pass moves the vectors that a recomputation of the first one starts from.
    (compiled(real) - compiled(fake)).sum().backward()
    (checkpoint(plain, real, use_reentrant=False) - checkpoint(plain, fake, use_reentrant=False)).sum().backward()
    for parameter, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


@pytest.mark.parametrize("mode", ["train", "eval", "without gradients", "frozen"])
@pytest.mark.parametrize(
    "wrap",
    [
        specreg.spectral_norm,
        specreg.spectral_regularization,
        specreg.orthogonalize,
        lambda m: [parametrizations.weight_norm(m[i]) for i in (0, 2, 5)],
        lambda m: [torch.nn.utils.weight_norm(m[i]) for i in (0, 2, 5)],
        lambda m: [torch.nn.utils.spectral_norm(m[i]) for i in (0, 2, 5)],
    ],
    ids=["sn", "sr", "oni", "weight_norm", "legacy weight_norm", "legacy sn"],
)
def test_remove_leaves_plain_weights_and_the_same_function(wrap, mode):
    module = discriminator()
    keys = list(module.state_dict())
    wrap(module)
    module.requires_grad_(mode != "frozen")
    x = images()
    module.train()
    module(x)
    module.eval()
    expected = module(x)
    module.train(mode == "train")
    with torch.set_grad_enabled(mode != "without gradients"):
        assert specreg.remove(module) == ["0.weight", "2.weight", "5.weight"]
    assert sorted(module.state_dict()) == sorted(dict(module.named_parameters())) == sorted(keys)
    assert all(parameter.requires_grad == (mode != "frozen") for parameter in module.parameters())
    assert all(layer.training == (mode == "train") for layer in module.modules())
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    hooks = [hook for layer in module.modules() for hook in layer._state_dict_hooks.values()]
    hooks += [hook for layer in module.modules() for hook in layer._load_state_dict_pre_hooks.values()]
    assert not any(hasattr(hook, "fn") for hook in hooks)  # as legacy spectral_norm's have
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), expected)
    module.load_state_dict(module.state_dict())
    assert specreg.remove(module) == []


@pytest.mark.parametrize(
    "wrap",
    [
        specreg.spectral_norm,
        specreg.spectral_regularization,
        specreg.orthogonalize,
        lambda m: [torch.nn.utils.spectral_norm(m[i]) for i in (0, 2, 5)],
    ],
)
def test_remove_leaves_no_gradient_of_another_function(wrap):
    module = discriminator()
    wrap(module)
    module(images()).sum().backward()
    specreg.remove(module)
    assert [name for name, weight in module.named_parameters() if weight.ndim > 1 and weight.grad is not None] == []


def test_remove_keeps_a_shared_weight_shared_and_what_the_first_used():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[1].weight = module[0].weight
    specreg.spectral_norm(module)
    module[0].parametrizations.weight.original.data.normal_()  # the vectors lag behind
    module.eval()
    x = torch.randn(2, 8)
    expected = module[0](x)
    specreg.remove(module)
    assert module[0].weight is module[1].weight
    torch.testing.assert_close(module[0](x), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128], ids=str
)
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d-grouped", "conv2d-transposed"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_on_every_dtype(verb, kind, dtype):
    layer = LAYERS[kind]().to(dtype)
    VERBS[verb](layer)
    out = layer(example_input(layer, dtype))
    assert out.dtype == dtype
    assert torch.view_as_real(out).isfinite().all() if dtype.is_complex else out.isfinite().all()
    if verb in PARAMETRIZED:
        layer.eval()
        matrix = to_matrix(layer.weight.detach(), **layout(layer))
        double = matrix.to(torch.complex128 if dtype.is_complex else torch.float64)
        stacked = layer.weight.detach().movedim(layout(layer)["output_dim"], 0).flatten(1).to(double.dtype)
        largest = torch.linalg.matrix_norm(stacked if verb == "spectral_norm" else double, ord=2)
        # Power iteration starts with 15 steps; half precision adds its rounding.
        torch.testing.assert_close(largest, torch.ones_like(largest), rtol=0.05, atol=0)


def test_a_shared_weight_stays_shared_when_legacy_hooks_go():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    module = nn.Sequential(first, second, nn.Linear(8, 8))
    for layer in module:
        torch.nn.utils.spectral_norm(layer)
    module(torch.randn(2, 8))
    used = first.weight.detach().clone()
    assert specreg.remove(module) == ["0.weight", "1.weight", "2.weight"]
    assert first.weight is second.weight
    assert module[2].weight is not first.weight
    torch.testing.assert_close(first.weight.detach(), used)


def test_a_weight_that_another_module_uses_bare_stays_shared_when_the_legacy_hook_goes():
    embedding, linear = nn.Embedding(8, 6), nn.Linear(6, 8)
    linear.weight = embedding.weight
    torch.nn.utils.spectral_norm(linear)
    optimizer = torch.optim.SGD(linear.parameters(), 0.1)
    specreg.remove(linear)
    assert linear.weight is embedding.weight
    before = linear.weight.detach().clone()
    linear(torch.ones(1, 6)).sum().backward()
    optimizer.step()  # made before, it trains it still
    assert not torch.equal(linear.weight, before)


@pytest.mark.parametrize("verb", [specreg.static_compensation, specreg.dynamic_compensation])
def test_a_compensator_goes_through_pickle(verb):
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Conv1d(8, 8, 3))
    compensator = verb(module, every=1)
    compensator.step()
    module.compensator = compensator
    copied = pickle.loads(pickle.dumps(module))
    assert copied.compensator.state_dict().keys() == compensator.state_dict().keys()
    for each in (module, copied):
        with torch.no_grad():
            each[0].weight[0] *= 3
        each.compensator.step()
    assert torch.equal(module[0].weight, copied[0].weight)

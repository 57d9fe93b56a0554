"""Which layers are found, and how: registered classes, frozen and sharded ones, classes with a forward of their own."""

import copy
import logging
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm

import specreg
from kinds import OwnNormalized, set_spectrum
from specreg.layers.evaluation import evaluating
from specreg.layers.find import find
from specreg.layers.selection import plainly_named_modules


class EqualLinear(nn.Module):
    """An equalized learning rate, as StyleGAN2's ports spell it."""

    def __init__(self, inputs, outputs, lr_mul=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.scale = inputs**-0.5 * lr_mul

    def forward(self, x):
        return F.linear(x, self.weight * self.scale)


class ModulatedConv2d(nn.Module):
    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.scale = (inputs * size**2) ** -0.5
        self.modulation = EqualLinear(4, inputs)

    def forward(self, x, style):
        style = self.modulation(style)[:, None, :, None, None]
        weight = (self.scale * self.weight * style).flatten(0, 1)
        return F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, groups=len(x)).unflatten(1, (len(x), -1))[0]


class FullyConnectedLayer(nn.Module):
    """The same of the authors' PyTorch code."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.weight_gain = inputs**-0.5

    def forward(self, x):
        return x @ (self.weight * self.weight_gain).T


class Bank(nn.Module):
    """Kernels that are mixed before use, (n, out, in, k, k)."""

    def __init__(self):
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(3, 6, 4, 3, 3))


specreg.register(Bank, "kernels", output_dim=1, groups=lambda bank: len(bank.kernels))


def matrices(weight, *shape):
    return torch.linalg.svdvals(weight.detach().double().reshape(*shape))


# Module -> layer's name and the singular values of what the network uses, without specreg.
CUSTOM = {
    "equalized": (lambda: EqualLinear(8, 6), lambda m: {"": matrices(m.weight * m.scale, 6, 8)}),
    "gain": (lambda: FullyConnectedLayer(8, 6), lambda m: {"": matrices(m.weight * m.weight_gain, 6, 8)}),
    "modulated": (
        lambda: ModulatedConv2d(5, 6, 3),
        lambda m: {
            "": matrices(m.weight * m.scale, 6, 45),
            "modulation": matrices(m.modulation.weight * m.modulation.scale, 5, 4),
        },
    ),
    "bank": (Bank, lambda m: {"kernels": matrices(m.kernels, 3, 6, 36)}),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), lambda m: {"": matrices(m.weight, 5, 12)}),
    "attention": (
        lambda: nn.MultiheadAttention(6, 2),
        lambda m: {
            "in_proj_weight": matrices(m.in_proj_weight, 3, 6, 6),
            "out_proj": matrices(m.out_proj.weight, 6, 6),
        },
    ),
    "attention with other keys": (
        lambda: nn.MultiheadAttention(6, 2, kdim=4),
        lambda m: {
            **{f"{part}_proj_weight": matrices(getattr(m, f"{part}_proj_weight"), 6, -1) for part in "qkv"},
            "out_proj": matrices(m.out_proj.weight, 6, 6),
        },
    ),
    "lstm": (
        lambda: nn.LSTM(3, 5, proj_size=2),
        lambda m: {
            "weight_ih_l0": matrices(m.weight_ih_l0, 4, 5, 3),
            "weight_hh_l0": matrices(m.weight_hh_l0, 4, 5, 2),
            "weight_hr_l0": matrices(m.weight_hr_l0, 2, 5),
        },
    ),
    "gru cell": (
        lambda: nn.GRUCell(4, 5),
        lambda m: {"weight_ih": matrices(m.weight_ih, 3, 5, 4), "weight_hh": matrices(m.weight_hh, 3, 5, 5)},
    ),
}


@pytest.mark.parametrize(("make", "expected"), CUSTOM.values(), ids=CUSTOM)
def test_registered_weights_are_read_as_the_network_uses_them(make, expected):
    module = make()
    spectra = specreg.spectra(module)
    assert list(spectra) == list(expected(module))
    for name, s in expected(module).items():
        torch.testing.assert_close(spectra[name], s, rtol=1e-5, atol=1e-6)
    assert specreg.Monitor(module).layers == tuple(spectra)


@pytest.mark.parametrize(("make", "expected"), CUSTOM.values(), ids=CUSTOM)
def test_registered_weights_are_compensated(make, expected):
    module = make()
    before = expected(module)
    compensator = specreg.static_compensation(module, keep=1.0)
    assert compensator.step()
    assert compensator.satisfied()
    for name, s in expected(module).items():
        torch.testing.assert_close(s, before[name][..., :1].expand_as(s), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("make", "expected"), CUSTOM.values(), ids=CUSTOM)
@pytest.mark.parametrize("verb", ["spectral_norm", "spectral_regularization", "orthogonalize"])
def test_registered_weights_are_parametrized(verb, make, expected):
    module = make()
    names = list(getattr(specreg, verb)(module))
    assert names == list(expected(module))
    for _ in range(200 if verb == "spectral_norm" else 1):
        expected(module)  # reads each weight, which moves power iteration
    module.eval()
    for name, s in expected(module).items():
        if verb == "orthogonalize":
            assert bool((s <= 1 + 1e-5).all())
            continue
        if verb == "spectral_norm" and s.ndim > 1:  # torch normalizes stacked matrices as one
            assert bool((s <= 1 + 1e-3).all())
            continue
        torch.testing.assert_close(s[..., 0], torch.ones_like(s[..., 0]), rtol=1e-3, atol=0)
        torch.testing.assert_close(specreg.spectra(module, weight="used")[name], s, rtol=1e-5, atol=1e-6)


def test_a_normalized_recurrent_layer_runs_with_the_normalized_weight():
    layer, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    plain = copy.deepcopy(layer)
    specreg.spectral_norm(layer)
    for _ in range(50):
        layer(x)
    layer.eval()
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight = getattr(plain, name)
            weight /= torch.linalg.matrix_norm(weight, 2)
    torch.testing.assert_close(layer(x)[0], plain(x)[0], rtol=1e-4, atol=1e-5)


def test_a_class_of_the_same_name_that_lacks_the_gain_is_no_layer():
    class EqualLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

    module = nn.ModuleList([EqualLinear(), nn.Linear(3, 2)])
    assert list(find(module)) == ["1"]
    assert find(module).left_out.not_covered == ("0.weight",)


def test_a_class_named_like_one_of_torchs_is_told_from_it():
    strange = type("Linear", (nn.Module,), {"__module__": "other.networks"})()
    strange.weight = nn.Parameter(torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"holds 1 x ReLU, 1 x other\.networks\.Linear, specreg takes convolutions"):
        find(nn.Sequential(strange, nn.ReLU()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((EqualLinear(3, 3),), TypeError, "expected a class of modules"),
        ((int,), TypeError, "expected a class of modules"),
        ((EqualLinear, "weight", 2), ValueError, "output_dim must be 0 or 1, got 2"),
    ],
)
def test_a_bad_registration_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        specreg.register(*arguments[:2], **dict(zip(["output_dim"], arguments[2:], strict=False)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "has a weight of 4 x 6, which is no 3 groups"),
        ({"groups": 0}, "groups of a Odd must be an integer of at least 1, got 0"),
        ({"groups": lambda layer: 2.5}, "groups of a Odd must be an integer of at least 1, got 2.5"),
        ({"gain": lambda layer: 0}, "the gain of a Odd must be a finite number other than 0, got 0"),
        ({"gain": "scale"}, "the gain of a Odd must be a finite number other than 0, got 'scale'"),
    ],
)
def test_what_a_class_was_registered_with_is_checked_where_it_is_met(options, message):
    class Odd(EqualLinear):
        pass

    specreg.register(Odd, **options)
    with pytest.raises(ValueError, match=message):
        specreg.spectra(Odd(6, 4))


def test_a_name_with_brackets_is_a_name():
    module = nn.ModuleDict({"period[2]": nn.Linear(4, 4), "period2": nn.Linear(4, 4)})
    assert list(find(module, only="period[2]")) == ["period[2]"]
    assert list(find(module, skip="period[2]")) == ["period2"]
    assert list(find(module, only="period?2?")) == ["period[2]"]  # a glob


def network():
    return nn.ModuleDict({"features": nn.Linear(6, 6), "head": nn.Linear(6, 6)})


VERBS = {
    "static": specreg.static_compensation,
    "norm": specreg.spectral_norm,
    "regularization": specreg.spectral_regularization,
    "orthogonalize": specreg.orthogonalize,
    "monitor": specreg.Monitor,
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_frozen_layers_beside_trained_ones_are_left_out(verb):
    module = network()
    module["features"].requires_grad_(False)
    before = copy.deepcopy(module["features"])
    result = verb(module)
    for _ in range(3):
        getattr(result, "step", lambda *_: None)(*[0] * isinstance(result, specreg.Monitor))
    assert list(getattr(result, "layers", result)) == ["head"]
    assert torch.equal(module["features"].weight, before.weight)


def test_frozen_layers_are_named_and_can_be_asked_for():
    module = network()
    module["features"].requires_grad_(False)
    report = find(module)
    assert report.left_out.frozen == ("features",)
    assert str(report).endswith("left out, frozen: features")
    assert list(find(module, only="features")) == ["features"]
    many = nn.ModuleList(nn.Linear(2, 2).requires_grad_(i > 9) for i in range(11))  # there may be a thousand
    assert str(find(many)).endswith("left out, frozen: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")
    assert len(find(many).left_out.frozen) == 10
    with pytest.raises(ValueError, match="features need no gradient, where others do"):
        find(module, skip="head")
    assert list(find(module.requires_grad_(False))) == ["features", "head"]  # switched off for the generator's step


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False], ids=["gradients", "none"])
def test_pretrained_features_that_are_taken_are_told_of(verb, pretrained, with_gradients, caplog):
    # Without, as the loops of StyleGAN and its successors make a discriminator; with, where no optimizer has them.
    module = network().requires_grad_(with_gradients)
    module["features"].train(not pretrained)
    with caplog.at_level(logging.WARNING):
        verb(module)
    text = "layers in eval mode beside others in training mode, "
    assert (f"{text}features, seem to be pretrained: leave them out with skip" in caplog.text) == pretrained
    caplog.clear()
    module = network().requires_grad_(with_gradients)
    module["features"].train(not pretrained)
    with caplog.at_level(logging.WARNING):
        verb(module, only=["features", "head"])
    assert not caplog.text


def test_modules_that_hold_each_other_are_named_in_a_moment():
    blocks = []
    for _ in range(40):
        block = nn.Module()
        block.linear = nn.Linear(2, 2)
        for index, earlier in enumerate(blocks):
            block.add_module(f"block{index}", earlier)
        blocks.append(block)
    assert len(list(plainly_named_modules(blocks[-1], repeated=True))) <= 16 * 2 * len(blocks)
    assert len(find(blocks[-1])) == len(blocks)


def test_a_module_with_several_places_has_each_of_their_names():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    networks = nn.ModuleDict({"teacher": nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 2)})})
    networks["D"] = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 1)})
    encoder.owner = networks  # a child that holds what holds it
    own = [f"D.{name}" for name in ("encoder.0", "encoder.1", "head")]
    assert list(find(networks)) == ["teacher.encoder.0", "teacher.encoder.1", "teacher.head", "D.head"]
    assert list(find(networks, only="D")) == own
    assert list(find(networks, skip="teacher")) == own
    assert list(find(networks, skip="*encoder*")) == ["teacher.head", "D.head"]
    assert specreg.Monitor(networks, only="D", groups={"D": "D"}).groups == {"D": tuple(own)}
    layers = specreg.spectral_norm(networks, only="D")
    assert [(len(layer.uses), layer.shared_with, layer.others) for layer in layers.values()] == [(1, (), ())] * 3
    specreg.remove(networks)
    assert type(encoder[0]) is nn.Linear


@pytest.mark.parametrize("normalize", [torch.nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_frozen_normalized_layers_are_seen_through_the_normalization(normalize):
    module = network()
    normalize(module["features"])
    module["features"].requires_grad_(False)
    assert list(find(module)) == ["head"]


def test_a_weight_shared_by_two_orientations_is_two_layers():
    convolution, transposed = nn.Conv2d(4, 3, 3), nn.ConvTranspose2d(3, 4, 3)
    transposed.weight = convolution.weight = nn.Parameter(torch.randn(3, 4, 3, 3))
    module = nn.ModuleList([convolution, transposed])
    spectra = specreg.spectra(module)
    torch.testing.assert_close(spectra["0"], matrices(convolution.weight, 3, 36), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spectra["1"], matrices(convolution.weight.transpose(0, 1), 4, 27), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="layers '0' and '1' share a weight and use it as two different matrices"):
        specreg.static_compensation(module)
    specreg.spectral_norm(module)
    for _ in range(200):
        weights = [convolution.weight, transposed.weight]
    for weight, rows, dims in zip(weights, (3, 4), ((0, 1), (1, 0)), strict=True):
        s = matrices(weight.permute(*dims, 2, 3), rows, -1)
        torch.testing.assert_close(s[0].item(), 1.0, rtol=1e-3, atol=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_use_in_another_orientation_that_was_left_out_stays_normalized(legacy):
    convolution, transposed = nn.Conv2d(16, 16, 3), nn.ConvTranspose2d(16, 16, 3)
    set_spectrum(convolution, lambda rank: torch.linspace(1, 0.05, rank).double())
    transposed.weight = convolution.weight
    module = nn.Sequential(convolution, transposed)
    if legacy:
        for layer in module:
            nn.utils.spectral_norm(layer)
    else:
        specreg.spectral_norm(module)
    compensator = specreg.static_compensation(module, keep=1.0, skip="1")
    for _ in range(100):
        module(torch.randn(1, 16, 4, 4))
    compensator.step()
    module.eval()(torch.randn(1, 16, 4, 4))
    for layer, dims in ((convolution, (0, 1)), (transposed, (1, 0))):
        used = layer.weight.detach().permute(*dims, 2, 3).flatten(1)
        assert float(torch.linalg.matrix_norm(used, 2)) == pytest.approx(1, abs=1e-4)


def test_a_weight_that_is_bare_in_another_orientation_is_not_normalized():
    convolution, transposed = nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)
    transposed.weight = convolution.weight
    module = nn.Sequential(convolution, transposed)
    specreg.spectral_norm(module, only="0")
    before = specreg.spectra(module, only="0")["0"]
    specreg.static_compensation(module, skip="1").step()
    assert float(specreg.spectra(module, only="0")["0"][0]) == pytest.approx(float(before[0]), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("verb", [*VERBS.values(), specreg.spectra], ids=[*VERBS, "spectra"])
def test_codes_and_eight_bits_are_no_weights(verb, dtype):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
    module.requires_grad_(False)
    with pytest.raises(ValueError, match=f"layer '1' has a weight of {str(dtype).removeprefix('torch.')}.*skip='1'"):
        verb(module)
    if verb is not specreg.orthogonalize:
        verb(module, skip="1")


@pytest.mark.parametrize("shape", [(12,), (0,), ()])
def test_sharded_weights_are_said_to_be_sharded_whatever_this_process_has(shape):
    class FullyShardedDataParallel(nn.Module):  # what torch's wrapper looks like from outside
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match="sharded between processes"):
        specreg.spectra(FullyShardedDataParallel(nn.Sequential(layer)))
    mixed = nn.ModuleDict({"features": FullyShardedDataParallel(nn.Sequential(layer)), "head": nn.Linear(3, 1)})
    with pytest.raises(ValueError, match=r"a part of it that is whole, .*, can be given by itself"):
        specreg.spectra(mixed)
    assert list(specreg.spectra(mixed["head"])) == [""]
    del layer.weight
    layer.weight = torch.zeros(3, 4)  # a flat parameter elsewhere, views of it here
    with pytest.raises(ValueError, match="sharded between processes"):
        specreg.spectra(FullyShardedDataParallel(nn.Sequential(layer)))
    whole = FullyShardedDataParallel(nn.Sequential(nn.Linear(4, 3)))  # within summon_full_params
    assert list(specreg.spectra(whole)) == ["0"]


def test_a_weight_of_one_dimension_is_named():
    module = nn.Sequential(nn.Linear(4, 4))
    module[0].weight = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match=r"layer '0' has a weight of the shape \(4\), no matrix"):
        specreg.spectra(module)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / 16, self.bias)


class Inside(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 5 * weight, bias)


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


FORWARDS = {
    "standardized": (Standardized, "Standardized uses another weight than the one that it stores"),
    "scaled": (Scaled, "Scaled uses its weight times 0.0625"),
    "scaled inside": (Inside, "Inside uses its weight times 5"),
    "own normalization": (OwnNormalized, "OwnNormalized uses its weight times"),
    "padded": (Padded, None),
    "plain": (nn.Conv2d, None),
}


@pytest.mark.parametrize("normalize", [nn.utils.spectral_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("kind", [Padded, Scaled])
def test_what_a_legacy_hook_left_is_not_taken_for_what_a_forward_uses(normalize, kind, caplog):
    layer = normalize(kind(3, 4, 3)).double()  # what the hook left stays in single precision
    left = layer.weight
    specreg.static_compensation(layer)
    assert [message.split(";")[0] for message in caplog.messages] == (
        ["layer '(the module itself)': Scaled uses its weight times 0.0625"] if kind is Scaled else []
    )
    assert layer.weight is left


def test_affine_parameters_of_normalization_layers_are_no_matrices(caplog):
    norms = nn.LayerNorm([8, 6, 6]), nn.RMSNorm([6, 6])
    module = nn.Sequential(nn.Conv2d(3, 8, 3), *norms, nn.Flatten(), nn.Linear(288, 1))
    assert find(module).left_out.not_covered == ()
    specreg.Monitor(module)
    assert not caplog.messages


def test_a_wrapper_that_is_looked_at_rebuilds_no_buckets():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
        wrapped(torch.randn(2, 4)).sum().backward()  # the next pass with gradients sends their order
        with evaluating(nn.ModuleDict({"d": wrapped})):
            wrapped(torch.randn(2, 4))
        assert not wrapped._has_rebuilt_buckets
        assert "forward" not in vars(wrapped)
        wrapped(torch.randn(2, 4))
        assert wrapped._has_rebuilt_buckets
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("kind", "message"), FORWARDS.values(), ids=FORWARDS)
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_forward_that_uses_another_weight_is_told_of(verb, kind, message, caplog):
    if verb is specreg.spectral_norm and kind is OwnNormalized:
        message = None  # it is left out
    module = nn.Sequential(kind(3, 4, 3), nn.Conv2d(4, 4, 3))
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        verb(module)
    assert (message is None) == ("layer '0'" not in caplog.text)
    assert message is None or message in caplog.text
    assert torch.equal(random, torch.get_rng_state()) or verb is specreg.spectral_norm  # its vectors are random
    if verb is specreg.Monitor:
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])


def test_spectral_norm_leaves_out_classes_that_normalize_themselves():
    module = nn.Sequential(OwnNormalized(3, 4, 3), nn.Conv2d(4, 4, 3))
    keys = [key for key in module.state_dict() if key.startswith("0.")]
    report = specreg.spectral_norm(module)
    assert list(report) == ["1"]
    assert report.left_out.normalizing == ("0",)
    assert "left out, normalized by their class: 0" in str(report)
    assert [key for key in module.state_dict() if key.startswith("0.")] == keys


def test_layers_that_are_bare_beside_normalized_ones_are_marked():
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3))
    specreg.spectral_norm(module, only="1")
    lines = str(specreg.static_compensation(module).layers).splitlines()
    assert [line.endswith("not normalized") for line in lines[1:4]] == [True, False, True]
    assert lines[-1].startswith("not normalized: the network feels the scale")
    assert "not normalized" not in str(find(nn.Linear(4, 4)))


@pytest.mark.parametrize("weight_norm", [nn.utils.weight_norm, parametrizations.weight_norm])
def test_layers_under_weight_normalization_are_not_called_bare(weight_norm):
    """HiFi-GAN's first scale discriminator is under spectral normalization, its others under weight normalization."""
    module = nn.Sequential(nn.Linear(4, 6), weight_norm(nn.Linear(6, 4)))
    specreg.spectral_norm(module, only="0")
    _, normalized, weight_normed = str(specreg.static_compensation(module).layers).splitlines()
    assert weight_normed.endswith("  weight normalization")
    assert "norm" not in normalized
    assert "norm" not in str(find(nn.Sequential(nn.Linear(4, 6), weight_norm(nn.Linear(6, 4)))))


def test_the_weight_in_use_can_be_asked_for():
    module = nn.Linear(5, 6)
    specreg.spectral_regularization(module, keep=1.0)
    assert not torch.allclose(specreg.spectra(module, normalized=True)[""], torch.ones(5, dtype=torch.float64))
    used = specreg.spectra(module, normalized=True, weight="used")[""]
    torch.testing.assert_close(used, torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="weight must be one of stored, used, got 'both'"):
        specreg.spectra(module, weight="both")


@pytest.mark.parametrize("weight", ["stored", "used"])
def test_a_weight_that_is_computed_is_computed_once_for_its_spectrum(weight, monkeypatch):
    module = nn.Linear(5, 6)
    specreg.orthogonalize(module)
    orthogonalization, calls = type(module.parametrizations.weight[0]), []
    mapped = orthogonalization.mapped
    monkeypatch.setattr(orthogonalization, "mapped", lambda self, matrix: calls.append(matrix) or mapped(self, matrix))
    specreg.spectra(module, weight=weight)
    assert len(calls) == 1


def test_transforms_pass_as_with_torchs_own_normalization():
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    specreg.spectral_norm(ours)
    parametrizations.spectral_norm(theirs)
    theirs.parametrizations.weight[0].load_state_dict(ours.parametrizations.weight[0].state_dict())
    x = torch.randn(5, 4)

    def gradients(layer):
        return torch.func.vmap(torch.func.grad(lambda sample: layer(sample).square().sum()))(x)

    for _ in range(3):
        assert torch.equal(gradients(ours), gradients(theirs))
    for mine, torchs in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, torchs)


def test_an_instance_with_a_forward_of_its_own_is_told_of(caplog):
    module = nn.Linear(4, 4)
    module.forward = types.MethodType(lambda self, x: F.linear(x, self.weight * 2), module)
    specreg.static_compensation(module)
    assert "uses its weight times 2" in caplog.text


class ForeignHook:
    """A pre-hook of another project that makes a weight, with a method of the name that torch's has."""

    def compute_weight(self, module):
        return 0.5 * module.weight_orig

    def __call__(self, module, inputs):
        module.weight = self.compute_weight(module)


def test_another_projects_hook_with_torchs_method_is_of_no_known_layer():
    hooked = nn.Linear(4, 4)
    hooked.weight_orig = hooked._parameters.pop("weight")
    hook = ForeignHook()
    hook.name = "weight"
    hooked.register_forward_pre_hook(hook)
    module = nn.Sequential(nn.Linear(4, 4), hooked)
    for _ in range(2):
        assert specreg.Monitor(module).left_out.not_covered == ("1.weight_orig",)
        module(torch.ones(1, 4))  # from now on it has the attribute
    assert list(specreg.spectral_norm(module)) == ["0"]


def test_a_pruned_recurrent_weight_and_its_mask_are_no_layers():
    recurrent = nn.LSTM(4, 6)
    prune.l1_unstructured(recurrent, "weight_hh_l0", 0.5)
    layers = specreg.Monitor(nn.Sequential(recurrent, nn.Linear(6, 6)))
    assert layers.layers == ("0.weight_ih_l0", "1")
    assert layers.left_out.not_covered == ("0.weight_hh_l0_orig",)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear, self.score = nn.Embedding(12, 8), nn.Linear(8, 12), nn.Linear(12, 1)
        self.linear.weight = self.embedding.weight

    def forward(self, tokens):
        return self.score(self.linear(self.embedding(tokens)).mean(1))


def test_a_weight_tied_to_an_embedding_is_written_for_both():
    module = Tied()
    specreg.spectral_norm(module)
    compensator = specreg.static_compensation(module, every=1)
    assert list(compensator.layers) == ["linear", "score"]
    for _ in range(3):  # the vectors of both move
        module(torch.randint(12, (3, 4)))
    compensator.step()
    module.eval()
    for weight in (module.embedding.weight, module.linear.weight):
        assert float(torch.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(1, abs=1e-5)


def test_a_linear_layer_tied_to_a_bare_embedding_is_not_normalized():
    module = Tied()
    specreg.spectral_norm(module, skip="embedding")
    compensator = specreg.static_compensation(module, only="linear", every=1)
    assert not compensator.layers["linear"].is_normalized


def test_a_guard_knows_a_tied_weight_by_either_name():
    module = Tied()
    guard = specreg.Guard(specreg.Monitor(module, every=1))
    detector = specreg.Detector(specreg.Thresholds(warmup=0))
    for iteration, level in enumerate([0.9] * 10 + [0.3] * 6):  # the monitor names the layer by the embedding
        guard(detector.update(100 * iteration, {"embedding": [1.0] + 5 * [level], "score": [1.0]}))
    assert guard.switched_on is not None
    with pytest.raises(ValueError, match="the monitor does not watch the layer 'linear'"):
        specreg.Guard(specreg.Monitor(module, skip=["embedding", "linear"]), only="linear")


class HalvedSpectralNorm(LegacySpectralNorm):
    def compute_weight(self, module, do_power_iteration):
        return super().compute_weight(module, do_power_iteration) / 2


def test_a_subclass_of_the_legacy_hook_is_asked_for_its_weight():
    layer = nn.Linear(6, 6)
    torch.nn.utils.spectral_norm(layer, n_power_iterations=30)
    (hook,) = layer._forward_pre_hooks.values()
    hook.__class__ = HalvedSpectralNorm
    layer(torch.ones(1, 6))
    compensator = specreg.static_compensation(layer)
    compensator.step()
    for weight in (layer.weight, compensator.layers[""].used_matrix()):
        assert float(torch.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(0.5, abs=1e-5)


def test_a_tied_weight_that_is_normalized_where_it_is_chosen_is_not_called_bare():
    assert "not normalized" not in str(specreg.spectral_norm(Tied(), skip="embedding"))


@pytest.mark.parametrize("shape", [(5,), (0,)])
def test_what_is_sharded_after_its_layer_was_found_is_refused(shape):
    """FSDP leaves a piece of a weight in one dimension, or nothing."""
    layer = nn.Linear(4, 3)
    compensator, monitor = specreg.static_compensation(layer, every=1), specreg.Monitor(layer, every=1)
    layer.weight.data = torch.zeros(shape)
    for call in (compensator.step, lambda: monitor.step(1)):
        with pytest.raises(ValueError, match="sharded between processes after its layer was found"):
            call()
    assert not compensator.calls


@pytest.mark.parametrize("is_flat", [True, False])
def test_what_is_inside_a_sharded_network_is_named_as_sharded(is_flat):
    """Without FSDP's wrapper, which Accelerate takes off, only the parameters tell it."""
    module = nn.Sequential(nn.Linear(4, 3) if not is_flat else nn.ReLU())
    if is_flat:
        module.register_parameter("_flat_param", nn.Parameter(torch.zeros(5)))
    else:
        module[0].weight._fsdp_flattened = True
        module[0].weight.data = torch.zeros(5)
    with pytest.raises(ValueError, match="sharded"):
        specreg.spectra(module)


def test_frozen_tensors_of_no_known_layer_beside_trained_layers_are_not_told_of(caplog):
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    module.table = nn.Parameter(torch.randn(6, 8), requires_grad=False)
    assert specreg.Monitor(module).left_out.not_covered == ()
    assert not caplog.messages
    module.table.requires_grad_(True)
    assert specreg.Monitor(module).left_out.not_covered == ("table",)

"""Every block of docs/adopt.md runs as it stands, on small stand-ins for the code that it is meant for."""

import copy
import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import weight_norm

import specreg
from kinds import OwnNormalized
from specreg.layers import kinds

PAGE = Path(__file__).parents[2] / "docs" / "adopt.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


class PeriodDiscriminators(nn.Module):
    """Two weight-normalized discriminators of waveforms, which return scores and feature maps."""

    def __init__(self):
        super().__init__()
        self.discriminators = nn.ModuleList(
            nn.ModuleList([weight_norm(nn.Conv1d(1, 8, 5)), weight_norm(nn.Conv1d(8, 1, 3))]) for _ in range(2)
        )

    def forward(self, x):
        return [last(F.leaky_relu(first(x))) for first, last in self.discriminators]


class EqualConv2d(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), (9 * inputs) ** -0.5

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale)


class SNConv2d(OwnNormalized):
    """By the name that BigGAN and mimicry give it."""


class MyLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.scale = nn.Parameter(torch.randn(6, 4)), 0.5

    def forward(self, x):
        return x @ (self.kernel * self.scale)


class Images(nn.Module):
    def __init__(self, convolution):
        super().__init__()
        self.first, self.second, self.embed = convolution(3, 6), convolution(6, 6), nn.Embedding(4, 6)

    def forward(self, x):
        return self.second(F.relu(self.first(x))).mean()


def training(module, shape, steps=6):
    """Names that a training loop has; reading ``...`` in the loop runs nothing, so the optimizer steps on this."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)

    class Optimizer:
        def step(self):
            optimizer.zero_grad()
            scores = module(torch.randn(shape))
            (sum(score.square().mean() for score in scores) if isinstance(scores, list) else scores).backward()
            optimizer.step()

    return {"num_steps": steps, "optim_d": Optimizer(), "discriminator": module, "num_d_steps": 2, "disc_start": 3}


def vocoder():
    mpd, msd = PeriodDiscriminators(), PeriodDiscriminators()
    both = nn.ModuleDict({"mpd": mpd, "msd": msd})
    both.forward = lambda x: [*mpd(x), *msd(x)]
    return {**training(both, (2, 1, 64)), "mpd": mpd, "msd": msd}


def tokenizer():
    loss = nn.Module()
    loss.discriminator, loss.perceptual = Images(lambda i, o: nn.Conv2d(i, o, 3)), nn.Linear(2, 2).requires_grad_(False)
    return {**training(loss.discriminator, (2, 3, 9, 9)), "loss_module": loss}


def gan():
    pl = pytest.importorskip("pytorch_lightning")

    class Gan(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.discriminator = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

        def configure_optimizers(self):
            return [torch.optim.Adam(module.parameters()) for module in (self.generator, self.discriminator)]

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()[1]
            optimizer.zero_grad()
            self.manual_backward(self.discriminator(batch).square().mean())
            optimizer.step()

    return {"Gan": Gan, "pl": pl}


def saved():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    monitor, compensator = specreg.Monitor(module), specreg.dynamic_compensation(module, start=0)
    monitor.step(1)
    compensator.step()
    return {"monitor": monitor, "compensator": compensator}


def accumulation():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    discriminator = nn.Linear(4, 4)
    discriminator, optimizer = accelerator.prepare(discriminator, torch.optim.Adam(discriminator.parameters()))
    return {
        "accelerator": accelerator, "discriminator": discriminator, "optim_d": optimizer, "batches": range(6),
        "compensator": specreg.static_compensation(discriminator),
    }  # fmt: skip


STAND_INS = {
    "A vocoder": vocoder,
    "A codec": tokenizer,
    "StyleGAN-like": lambda: training(Images(EqualConv2d), (2, 3, 9, 9)),
    "BigGAN-like": lambda: training(Images(lambda i, o: SNConv2d(i, o, 3)), (2, 3, 9, 9)),
    "Lightning": gan,
    "A class of your own": lambda: {"MyLinear": MyLinear, "discriminator": nn.Sequential(MyLinear(), nn.Linear(4, 1))},
    "Whatever the loop": accumulation,
    "Save and resume": saved,
}


def run(title):
    (section,) = [text for heading, text in SECTIONS.items() if heading.startswith(title)]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {**STAND_INS[title](), "torch": torch, "specreg": specreg, "copy": copy, "pickle": pickle}
    file = names["file"] = io.BytesIO()
    if title == "Save and resume":
        block = block.replace("restored =", "file.seek(0)\nrestored =")
    exec(compile(block, str(PAGE), "exec"), names)
    file.seek(0)
    return names


def test_every_section_with_code_is_run():
    assert sorted(SECTIONS) == sorted(title for title in SECTIONS if title.startswith(tuple(STAND_INS)))
    for text in SECTIONS.values():
        added = re.findall(r"^.*(?:specreg|compensator|monitor|guard|plain).*$", text.split("```")[1], re.MULTILINE)
        assert 0 < len(added) < 10


def test_a_vocoder_is_compensated_and_watched_by_discriminator():
    names = run("A vocoder")
    assert len(names["compensator"].layers) == 8
    assert names["compensator"].acted > 0
    assert len(names["verdict"].evidence) == 4  # the last layers are of rank one


def test_a_tokenizer_is_guarded_without_its_perceptual_network():
    names = run("A codec")
    assert names["monitor"].layers == ("first", "second", "embed")
    assert names["guard"].compensator is None


def test_a_stylegan_is_normalized_with_its_gains_and_pickled():
    names = run("StyleGAN-like")
    restored, original = pickle.load(names["file"]).eval(), names["discriminator"].eval()
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(restored(x), original(x))
    used = specreg.spectra(original, weight="used")
    assert all(0.9 < float(used[name][0]) < 1.1 for name in ("first", "second"))
    assert list(names["compensator"].layers) == ["first", "second"]


def test_a_biggan_is_compensated_below_its_own_normalization():
    names = run("BigGAN-like")
    assert names["compensator"].acted > 0
    assert "embed" in names["monitor"].layers
    assert specreg.spectral_norm(names["discriminator"]).left_out.normalizing == ("first", "second")


@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers", "ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:Checkpoint directory")
def test_a_lightning_module_is_compensated_and_resumed(tmp_path):
    names = run("Lightning")
    pl, data = names["pl"], torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=2)
    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    module = names["Compensated"]()
    trainer.fit(module, data)
    assert module.compensator.calls == 6
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = names["Compensated"]()
    pl.Trainer(max_epochs=2, default_root_dir=tmp_path, **options).fit(resumed, data, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.compensator.calls == 12
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del before["compensator"]
    torch.save(before, tmp_path / "before.ckpt")
    late = names["Compensated"]()
    pl.Trainer(max_epochs=2, default_root_dir=tmp_path, **options).fit(late, data, ckpt_path=tmp_path / "before.ckpt")
    assert late.compensator.calls == 6


def test_a_class_of_ones_own_is_a_layer(capsys):
    names = run("A class of your own")
    assert "0.kernel  MyLinear  4 x 6" in capsys.readouterr().out
    weight = names["discriminator"][0].kernel.detach().T.double() * 0.5
    spectra = specreg.spectra(names["discriminator"])["0.kernel"]
    torch.testing.assert_close(spectra, torch.linalg.svdvals(weight), rtol=1e-5, atol=1e-6)


class SpectralNorm2d(nn.Module):
    """A wrapper as in older code, which divides a weight of its own by power iteration."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.w_bar = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))

    def forward(self, x):
        weight = self.w_bar.flatten(1)
        v = F.normalize(self.u @ weight, dim=0)
        return F.conv2d(x, self.w_bar / (self.u @ weight @ v))


def test_a_wrapper_is_a_layer_by_the_name_of_its_class(monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    module = nn.Sequential(SpectralNorm2d(3, 6), nn.Flatten(), nn.Linear(6, 1))
    assert list(specreg.spectra(module)) == ["2"]
    specreg.register("SpectralNorm2d", weight="w_bar")
    found = specreg.spectra(module)
    assert list(found) == ["0.w_bar", "2"]
    expected = torch.linalg.svdvals(module[0].w_bar.detach().double().flatten(1))
    torch.testing.assert_close(found["0.w_bar"], expected, rtol=1e-5, atol=1e-6)
    compensator = specreg.static_compensation(module, every=1, keep=1.0)
    compensator.step()
    assert compensator.satisfied()
    assert specreg.spectra(module, normalized=True)["0.w_bar"].min() > 1 - 1e-5
    assert specreg.Monitor(module).layers == ("0.w_bar", "2")


def test_accumulated_gradients_are_one_step():
    assert run("Whatever the loop")["compensator"].calls == 3


def test_what_spectral_norm_does_to_an_initialization_and_to_a_checkpoint():
    class Normalized(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 4), nn.Linear(4, 1))
            specreg.spectral_norm(self)

    plain, module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), Normalized()
    before = copy.deepcopy(module.state_dict())
    weights = [name for name in before if name.endswith("original")]
    assert len(weights) == 2
    module.apply(lambda child: nn.init.normal_(child.weight.data) if "Linear" in type(child).__name__ else None)
    module.load_state_dict(plain.state_dict(), strict=False)
    assert all(torch.equal(before[name], module.state_dict()[name]) for name in weights)
    assert not torch.equal(before["0.bias"], module.state_dict()["0.bias"])
    Normalized().load_state_dict(module.state_dict())


def test_states_are_saved_and_restored():
    names = run("Save and resume")
    assert names["monitor"].history.iterations == [1]
    assert names["compensator"].calls == 1

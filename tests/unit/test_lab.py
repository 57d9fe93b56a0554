"""Networks, losses, configuration, records, checkpoints: small pieces of the lab."""

import copy
import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import meters
import specreg
from specreg.data.arrays import ImageArrays, scaled
from specreg.data.digits import StackedDigits
from specreg.experiments import recorder
from specreg.experiments import run as running
from specreg.experiments.config import (
    DataConfig,
    ModelConfig,
    RecordConfig,
    RunConfig,
    Settings,
    differences,
    from_dict,
    refusal,
)
from specreg.experiments.methods import MethodOptions, PenaltyOptions, StaticOptions
from specreg.experiments.run import build_state
from specreg.experiments.sampling import real_samples
from specreg.experiments.sources import open_source
from specreg.experiments.sources.images import Images
from specreg.files import give_name
from specreg.losses import LOSSES, gradient_penalty
from specreg.models.resnet import STAGES, Discriminator, Generator
from specreg.monitor.modes import ModeJudge
from specreg.monitor.verdict import Answer
from specreg.records import RunDirectory
from specreg.training.average import update_average
from specreg.training.loop import TrainingConfig, decay_factor, train
from specreg.training.precision import compute_in_bf16
from specreg.training.state import SCHEMA, load_checkpoint, load_newest, save_checkpoint
from specreg.training.steps import NonFiniteError, discriminator_step
from spoilt import zipped
from trainings import SMALL


@pytest.mark.parametrize("resolution", STAGES)
def test_conditional_networks_of_every_resolution(resolution):
    labels = torch.tensor([0, 2])
    generator = Generator(resolution, 2, latent=5, num_classes=3)
    discriminator = Discriminator(resolution, 2, num_classes=3)
    images = generator(torch.randn(2, 5), labels)
    assert images.shape == (2, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)


@pytest.mark.parametrize(("resolution", "convolutions"), [(32, 10), (128, 17)])
def test_discriminators_have_the_papers_number_of_convolutions(resolution, convolutions):
    with torch.device("meta"):
        network = Discriminator(resolution, 64)
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(found) == convolutions
    if resolution == 128:
        assert max(m.weight.flatten(1).shape for m in found) == (1024, 9216)


def test_labels_change_a_conditional_networks_output():
    discriminator = Discriminator(8, 4, num_classes=2)
    generator = Generator(8, 4, num_classes=2)
    z = torch.randn(4, 128)
    with torch.no_grad():
        generator.blocks[0].norm1.gain[1] *= 2
    one, other = (torch.full((4,), label) for label in (0, 1))
    assert not torch.equal(generator(z, one), generator(z, other))
    images = generator(z, one)
    assert not torch.equal(discriminator(images, one), discriminator(images, other))


def test_initialization_is_glorot_uniform():
    network = Discriminator(32, 64)
    weight = network.blocks[1].conv1.weight
    bound = math.sqrt(2) * math.sqrt(6 / (2 * 64 * 9))
    assert bound * 0.98 < weight.abs().max() <= bound
    shortcut = network.blocks[1].shortcut.weight
    assert math.sqrt(6 / 128) * 0.98 < shortcut.abs().max() <= math.sqrt(6 / 128)


def test_losses_have_their_closed_forms():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    hinge, saturating, wasserstein = (LOSSES[name] for name in ("hinge", "non-saturating", "wasserstein-gp"))
    assert hinge.discriminator(real, fake).item() == pytest.approx(0.5 + 1.0)
    assert hinge.generator(fake).item() == pytest.approx(1.0)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    expected = (softplus(-2) + softplus(0)) / 2 + (softplus(-3) + softplus(1)) / 2
    assert saturating.discriminator(real, fake).item() == pytest.approx(expected)
    assert saturating.generator(fake).item() == pytest.approx((softplus(3) + softplus(-1)) / 2)
    assert wasserstein.discriminator(real, fake).item() == pytest.approx(-1 - 1)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2,)])  # of images and of points
def test_gradient_penalty_of_a_linear_discriminator(shape):
    weight = torch.randn(math.prod(shape), dtype=torch.float64)
    score = lambda samples: samples.flatten(1) @ weight  # noqa: E731
    samples = torch.randn(5, *shape, dtype=torch.float64)
    weights = torch.rand(5, *[1] * len(shape))
    penalty = gradient_penalty(score, samples, torch.randn_like(samples), weights=weights)
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2)


def test_learning_rates_decay_linearly_to_zero_or_not():
    linear = TrainingConfig(steps=4, lr_decay="linear")
    assert [decay_factor(linear, step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert decay_factor(TrainingConfig(steps=4, lr_decay="none"), 3) == 1.0


def test_ema_moves_parameters_and_copies_buffers():
    network, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    network.weight.data.fill_(3.0)
    network.running_mean.fill_(5.0)
    update_average(average, network, 0.9)
    torch.testing.assert_close(average.weight.data, torch.full((2,), 1.2))
    torch.testing.assert_close(average.running_mean, torch.full((2,), 5.0))


def test_the_running_average_has_the_statistics_of_its_own_features():
    state = build_state(RunConfig("sn", 0, replace(SMALL, training=replace(SMALL.training, ema_decay=0.9))),
                        Images(StackedDigits()))  # fmt: skip
    with torch.no_grad():
        for parameter in state.generator.parameters():  # the last weights' features are others
            parameter.mul_(2)
    update_average(state.ema, state.generator, 0.5)
    before = copy.deepcopy(state.ema.state_dict())
    features = []
    state.ema.norm.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    sampler = state.sampler
    norm = sampler.norm
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in features]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in features]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert sum(map(len, features)) == 1000
    assert norm.momentum == state.generator.norm.momentum
    assert not any(module.training for module in sampler.modules())
    assert all(map(torch.equal, sampler.parameters(), state.ema.parameters()))
    assert all(map(torch.equal, before.values(), state.ema.state_dict().values()))  # every process has the same
    assert state.sampler is sampler
    earlier = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    state.ema.load_state_dict(earlier)  # a roll-back, at the same step
    assert state.sampler is not sampler
    assert not state.sampler.norm.weight.any()


def test_configuration_goes_through_json():
    for keep in (2, 1.0):
        methods = MethodOptions(static=StaticOptions(keep=keep))
        config = RunConfig("dynamic", 3, Settings(precision="bf16", methods=methods))
        loaded = from_dict(RunConfig, json.loads(json.dumps(asdict(config))))
        assert loaded == config
        assert type(loaded.settings.methods.static.keep) is type(keep)


def emptied(values):
    return {key: emptied(value) for key, value in values.items() if isinstance(value, dict)}


def test_what_a_saved_configuration_lacks_has_its_default():
    """As of before there was an option, or a whole method."""
    for values in ({}, emptied(asdict(RunConfig()))):
        assert from_dict(RunConfig, values) == RunConfig()


def test_unknown_keys_are_refused_by_name():
    values = asdict(RunConfig())
    values["settings"]["training"]["stepz"] = 5
    with pytest.raises(ValueError, match=r"unknown key 'settings\.training\.stepz'; the keys are .*training\.steps"):
        from_dict(RunConfig, values)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("training", "steps", 0),
        ("training", "d_lr", 0.0),
        ("training", "gamma", -1.0),
        ("training", "beta2", 1.0),
        ("data", "stacked_size", 0),
        ("records", "evaluate_every", -1),
        ("records", "samples", 9),
        ("records", "reference", 9),
        ("model", "d_channels", 2.5),
        ("methods.static", "keep", -0.5),
        ("methods.static", "every", 0),
        ("methods.dynamic", "start", -1),
        ("methods.guard", "every", 0),
        ("methods.orthogonal", "weight", float("inf")),
        ("methods.oni", "iterations", 10**9),
        ("methods.oni", "iterations", -1),
    ],
)
def test_bad_values_are_named_whatever_the_method_of_the_run(part, key, value):
    values = asdict(RunConfig("sn"))
    inside = values["settings"]
    for name in part.split("."):
        inside = inside[name]
    inside[key] = value
    with pytest.raises(ValueError, match=rf"{key} must .*got {value!r}"):
        from_dict(RunConfig, values)


def test_differences_name_the_key_and_both_values():
    settings = Settings()
    other = replace(settings, training=replace(settings.training, batch_size=7))
    assert differences(settings, other) == [f"batch_size {settings.training.batch_size} -> 7"]
    assert differences(settings, settings) == []
    # Several methods have an option of this name.
    methods = MethodOptions(static=StaticOptions(every=20), orthogonal=PenaltyOptions(weight=1.0))
    longer = replace(settings, methods=methods, training=TrainingConfig(steps=9999))
    changed = differences(settings, longer)
    assert changed == ["steps 3000 -> 9999", "static.every 5 -> 20", "orthogonal.weight 0.0001 -> 1.0"]
    assert refusal(settings, longer)


def test_series_leave_out_a_torn_line_and_rewind(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append("metrics", {"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "d_lo')
    assert [record["step"] for record in run.series("metrics")] == [1, 2, 3]
    run.rewind(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_failed_checkpoint_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"schema": 1, "step": 1}, path)
    with pytest.raises(Exception, match=r"pickle|local object"):  # Python 3.13 says the latter
        save_checkpoint({"schema": 1, "step": lambda: None}, path)
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_flipped_bit_is_found_or_does_no_harm(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {"schema": 1, "weight": torch.arange(3000.0), "text": "step"}
    save_checkpoint(state, path)
    whole, found = path.read_bytes(), 0
    for position in range(0, len(whole), 41):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            loaded = load_checkpoint(path)
        except ValueError:
            found += 1
        else:  # alignment between the tensors
            assert torch.equal(loaded.pop("weight"), state["weight"])
            assert loaded == {"schema": 1, "text": "step"}
    assert found > 0.9 * 12000 / 41
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a readable checkpoint"):
            load_checkpoint(path)


def test_the_newest_readable_checkpoint_is_taken(tmp_path, caplog):
    newest, before = tmp_path / "checkpoint.pt", tmp_path / "checkpoint-before.pt"
    save_checkpoint({"schema": SCHEMA, "step": 2}, newest)
    save_checkpoint({"schema": SCHEMA, "step": 1}, before)
    assert load_newest([newest, before]) == ({"schema": SCHEMA, "step": 2}, newest)
    assert not caplog.records
    newest.write_bytes(newest.read_bytes()[:-9])
    assert load_newest([newest, before]) == ({"schema": SCHEMA, "step": 1}, before)
    assert "checkpoint.pt is not a readable checkpoint" in caplog.text
    assert "taking checkpoint-before.pt instead" in caplog.text
    before.unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        load_newest([newest])


def test_a_second_name_of_a_file(tmp_path, monkeypatch):
    one, other, name = (tmp_path / letter for letter in "abc")
    one.write_text("one")
    other.write_text("other")
    give_name(one, name)
    give_name(one, name)
    assert name.samefile(one)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    give_name(other, name)
    assert (one.read_text(), name.read_text()) == ("one", "other")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_checkpoint_of_too_many_entries_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(zipped({f"m/{i}": b"" for i in range(30_000)}))
    with pytest.raises(ValueError, match=r"not a readable checkpoint \(its list of entries is too long\)"):
        load_checkpoint(path)


def test_bf16_computes_the_forward_pass_alone_and_returns_float32():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    exact, seen = network(x), []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    compute_in_bf16(network)
    mixed = network(x)
    assert (seen, mixed.dtype) == ([torch.bfloat16], torch.float32)
    assert 0 < (mixed - exact).abs().max() < 0.05
    twin = copy.deepcopy(network)
    twin[1].bias.data += 1
    torch.testing.assert_close(twin(x), mixed + 1, rtol=0, atol=0.05)
    mixed.sum().backward()
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_weight_that_an_update_spoils_is_named_before_it_is_compensated():
    training = TrainingConfig(steps=3, batch_size=4)
    config = RunConfig("static", 0, replace(SMALL, training=training))
    state = build_state(config, Images(StackedDigits()))
    weights = {name: p.detach().clone() for name, p in state.generator.named_parameters()}
    step = state.discriminator_optimizer.step
    convolution = state.discriminator.blocks[0].conv1.parametrizations.weight.original
    state.discriminator_optimizer.step = lambda: (step(), convolution.data.fill_(math.inf))
    with pytest.raises(NonFiniteError, match=r"step 1: layer 'blocks\.0\.conv1': the weight holds NaN or inf"):
        train(state, config.settings.training)
    assert all(torch.equal(weights[name], p) for name, p in state.generator.named_parameters())


def test_accumulated_micro_batches_equal_one_large_batch_without_normalization():
    real, latent = torch.randn(8, 3, 8, 8), torch.randn(8, 5)
    gradients = []
    for parts in (1, 4):
        torch.manual_seed(0)
        generator, discriminator = Generator(8, 2, latent=5).eval(), Discriminator(8, 4)
        optimizer = torch.optim.SGD(discriminator.parameters(), 1.0)
        before = discriminator.score.weight.detach().clone()
        discriminator_step(
            generator,
            discriminator,
            optimizer,
            LOSSES["non-saturating"],
            [(part, None) for part in real.chunk(parts)],
            [(part, None) for part in latent.chunk(parts)],
            random=torch.Generator(),
        )
        gradients.append(before - discriminator.score.weight.detach())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_a_compiled_training_begins_as_a_plain_one(monkeypatch):
    compile_, graphs, losses, names, compiled_types = nn.Module.compile, [], [], [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def compile_one(self):
        compiled_types.append(type(self).__name__)
        compile_(self, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile_one)
    training = replace(SMALL.training, steps=1, batch_size=4, d_steps=1)
    for compiled in (False, True):
        assert not graphs
        state = build_state(
            RunConfig("sn", 0, replace(SMALL, compile=compiled, training=training)), Images(StackedDigits())
        )
        keep = lambda _, values: losses.append({name: value.item() for name, value in values.items()})  # noqa: E731
        train(state, training, callback=keep)
        names.append([list(state.state_dict()[network]) for network in ("generator", "discriminator")])
    assert graphs
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert names[0] == names[1]
    assert compiled_types == ["Generator", "Discriminator"]


@pytest.mark.parametrize(
    ("evaluated", "read"),
    [(0, 250), (1, 1), (200, 200), (300, 50), (500, 250), (2500, 250), (512, 128), (1001, 143), (251, 250), (998, 250)],
)
def test_coverage_is_read_at_evaluations_and_between_them_but_not_at_every_few_steps(evaluated, read):
    assert RecordConfig(evaluate_every=evaluated).coverage_every == read
    settings = Settings(training=TrainingConfig(steps=4000), records=RecordConfig(evaluate_every=evaluated or 1000))
    assert settings.ends_on_schedule == (4000 % settings.records.evaluate_every == 0)
    odd = RecordConfig(evaluate_every=998, spectra_every=2)  # it is read at 998 if that is the end alone
    assert not Settings(training=TrainingConfig(steps=998), records=odd).ends_on_schedule


def test_coverage_of_stacked_digits_is_measured_in_the_classifiers_features():
    """Their modes are combinations of three digits, which pixels hardly tell apart."""
    source = Images(StackedDigits())
    state = build_state(RunConfig("sn", settings=Settings(model=ModelConfig(d_channels=4, g_channels=4))), source)
    draw = lambda seed: source.dataset.draw(4000, torch.Generator().manual_seed(seed))  # noqa: E731
    images, modes = draw(1)
    digits = torch.stack([modes // 100, modes // 10 % 10, modes % 10], 1)
    coverage = state.monitor.coverage
    kept = scaled(images)[(digits < 5).all(1)]
    assert coverage.measure(kept).missing > 0.5  # 7 of 8 modes are gone
    assert coverage.measure(scaled(draw(2)[0][:1000])).missing < 0.02


def test_what_the_data_hold_twice_has_twice_the_mass():
    blank = torch.zeros(300, 1, 8, 8, dtype=torch.uint8)
    others = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = Images(ImageArrays("half", torch.cat([blank, others]), torch.zeros(600, dtype=torch.int64), ("",)))
    real = real_samples(source, RECORDS)
    assert (len(real), int((real == 0).all((1, 2, 3)).sum())) == (600, 300)
    assert specreg.Coverage(scaled(real)).measure(scaled(others)).lost > 0.4


@pytest.mark.parametrize(
    ("labels", "message"), [([0] * 50 + [2] * 50, "class '1' has no image"), ([0] * 80 + [1] * 10 + [2] * 10, None)]
)
def test_classes_are_of_equal_size_or_that_is_said(labels, message, caplog):
    images = torch.zeros(100, 3, 8, 8, dtype=torch.uint8)
    source = Images(ImageArrays("mine", images, torch.tensor(labels), ("0", "1", "2")))
    settings = Settings(data=DataConfig("mine", conditional=True))
    if message is None:
        source.check_evaluation(settings)
        assert "mine: classes have 10 to 80 images" in caplog.text
    else:
        with pytest.raises(ValueError, match=message):
            source.check_evaluation(settings)


def test_a_checksum_of_each_part_tells_a_change():
    state = build_state(RunConfig("static", 0, SMALL), Images(StackedDigits()))
    before = state.digests()
    assert before == state.digests()
    assert before.keys() == state.state_dict().keys() - {"global_random"}
    state.generator.start.weight.data.view(-1)[3] += 1e-3
    state.draws.manual_seed(5)
    state.step += 1
    assert {name for name, value in state.digests().items() if value != before[name]} == {"generator", "draws", "step"}


def test_a_reading_before_the_guard_went_back_is_of_another_network():
    state = build_state(RunConfig("guard", settings=SMALL), Images(StackedDigits()))
    state.monitor.reading, state.monitor.sampled, state.step = FEW, 8, 8
    assert recorder.reading_of(state) is FEW
    state.compensator.switched_on, state.compensator.restored = 8, 6
    assert recorder.reading_of(state) is None
    state.monitor.sampled = state.step = 10
    assert recorder.reading_of(state) is FEW
    state.step = 11
    assert recorder.reading_of(state) is None


FEW = replace(meters.reading(0.9), examples=torch.arange(7))
RECORDS = Settings().records


def test_what_is_missing_is_drawn_as_a_square_of_real_images_and_not_of_points(tmp_path):
    run, digits = RunDirectory(tmp_path), Images(StackedDigits())
    recorder.draw_missing(digits, run, RECORDS, FEW)
    with Image.open(run.image("missing")) as picture:
        pixels = np.asarray(picture)[4::4, 4::4]
    assert pixels.shape[:2] == (3 * 9, 3 * 9)
    assert np.array_equal(pixels[:8, :8], real_samples(digits, RECORDS)[0].permute(1, 2, 0).numpy())
    recorder.draw_missing(open_source(Settings(data=DataConfig("ring"))), run, RECORDS, FEW)
    assert not run.image("missing").exists()
    recorder.draw_missing(digits, run, RECORDS, replace(FEW, examples=torch.arange(30)))
    with Image.open(run.image("missing")) as picture:
        assert np.asarray(picture)[4::4, 4::4].shape[:2] == (5 * 9, 5 * 9)  # of 25 at most
    recorder.draw_missing(digits, run, RECORDS, meters.reading(0.0))
    assert not run.image("missing").exists()


def test_a_picture_is_drawn_when_modes_are_said_to_be_lost_and_at_the_end(tmp_path, monkeypatch):
    states = iter(["healthy", "healthy", "losing", "losing", "lost", "recovered", "lost"])
    monkeypatch.setattr(ModeJudge, "update", lambda self, iteration, reading: Answer(next(states), 0, ""))
    drawn = []
    draw = lambda source, run, records, reading: drawn.append(len(run.series("verdicts")))  # noqa: E731
    for module in (recorder, running):
        monkeypatch.setattr(module, "draw_missing", draw)
    records = RecordConfig(spectra_every=1, evaluate_every=1, samples=16, reference=16, tensorboard=False)
    small = {"model": ModelConfig(d_channels=2, g_channels=4, latent=4), "records": records}
    config = RunConfig("sn", 0, Settings(training=TrainingConfig(steps=6, batch_size=4, d_steps=1), **small))
    running.prepare_run(config, RunDirectory(tmp_path))
    assert running.execute(config, RunDirectory(tmp_path), Images(StackedDigits()))
    assert drawn == [3, 5, 7, 7]  # losing, lost, lost again, and the end


def test_a_checkpoint_of_a_machine_with_more_gpus_is_gone_on_from(monkeypatch):
    state = build_state(RunConfig("sn", 0, SMALL), Images(StackedDigits()))
    saved, device = state.state_dict(), torch.Generator().manual_seed(7)
    saved["global_random"]["cuda"] = [torch.Generator().manual_seed(seed).get_state() for seed in (1, 2)]
    monkeypatch.setattr(torch.cuda, "default_generators", (device,))  # of a machine with a single one
    for name, answer in {"is_available": True, "is_initialized": True, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    state.load_state_dict(saved)
    assert torch.equal(device.get_state(), saved["global_random"]["cuda"][0])


@pytest.mark.parametrize("data", ["digits", "ring"])
def test_a_picture_that_cannot_be_written_leaves_the_one_before(data, tmp_path, monkeypatch):
    source, path = open_source(Settings(data=DataConfig(data=data))), tmp_path / "samples.png"

    def torn(picture, file, *kind):
        write = file.write_bytes if isinstance(file, Path) else file.write
        write(b"torn")
        raise OSError("No space left on device")

    path.write_bytes(b"the one before")
    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        source.save_picture(lambda count: source.dataset.draw(count, torch.Generator())[0], path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"the one before"]

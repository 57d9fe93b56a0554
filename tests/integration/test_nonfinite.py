"""NaN and inf, wherever they come from, end a training before the update that would spread them, and are named."""

import json
import logging
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import specreg
from specreg.cli import main
from specreg.data.digits import StackedDigits
from specreg.experiments import recorder
from specreg.experiments.config import ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.run import build_state, execute, prepare_run
from specreg.experiments.sources.images import Images
from specreg.losses import LOSSES
from specreg.records import RunDirectory
from specreg.regularizers.compensators import Compensator
from specreg.training.loop import TrainingConfig, train
from specreg.training.state import TrainingState
from specreg.training.steps import NonFiniteError, discriminator_step, generator_step
from trainings import train as train_run

SETTINGS = Settings(
    model=ModelConfig(d_channels=4, g_channels=4, latent=8),
    training=TrainingConfig(steps=6, batch_size=4, d_steps=1),
    records=RecordConfig(
        log_every=1, spectra_every=2, evaluate_every=0, samples=32, reference=32, checkpoint_every=2, tensorboard=False
    ),
)
EVALUATED = RunConfig("static", 0, replace(SETTINGS, records=replace(SETTINGS.records, evaluate_every=1)))


def make_state(method: str = "static") -> TrainingState:
    return build_state(RunConfig(method, 0, SETTINGS), Images(StackedDigits()))


def poison(tensor: Tensor, value: float = float("nan")) -> None:
    with torch.no_grad():
        tensor.view(-1)[tensor.numel() // 2] = value


class BadSource(StackedDigits):
    """A source of images one of which holds NaN."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.zeros(count, 3, 8, 8)
        poison(images)
        return images, torch.zeros(count, dtype=torch.int64)


SCORE = "score.parametrizations.weight"
CAUSES = {  # -> what is bad first
    "the real images": lambda state: setattr(state, "dataset", BadSource()),
    "the generator's parameter start.weight": (
        lambda state: poison(state.generator.get_parameter("start.weight"), float("inf"))
    ),
    f"the discriminator's parameter {SCORE}.original": (
        lambda state: poison(state.discriminator.get_parameter(f"{SCORE}.original"))
    ),
    f"the discriminator's buffer {SCORE}.0._v": (lambda state: poison(state.discriminator.get_buffer(f"{SCORE}.0._v"))),
}


@pytest.mark.parametrize("first", CAUSES)
def test_a_bad_loss_is_traced_to_the_first_bad_tensor(first):
    state = make_state()
    CAUSES[first](state)
    before = [parameter.clone() for parameter in state.generator.parameters()]
    with pytest.raises(NonFiniteError) as error:
        train(state, SETTINGS.training)
    said = f"step 1: the discriminator's loss is nan (NaN or inf first in {first}); the update was not made"
    assert str(error.value) == said
    assert state.step == 0
    assert all(
        torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(before, state.generator.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("scale", "what"), [(float("inf"), "loss is"), (1e30, "gradient of 0.weight holds NaN, inf or")]
)
@pytest.mark.parametrize("which", ["discriminator", "generator"])
def test_what_overflows_in_a_step_is_not_applied(which, scale, what):
    generator = nn.Sequential(nn.Linear(2, 2))
    discriminator = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1), nn.Flatten(0))
    network = {"discriminator": discriminator, "generator": generator}[which]
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    # Its value stays, its gradient grows: as of a step into a cliff.
    original = discriminator[1].forward
    discriminator[1].forward = lambda x: original(x + scale * (x - x.detach()))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    latent = [(torch.randn(4, 2), None)]
    step, batches, options = generator_step, [latent], {}
    if which == "discriminator":
        step, batches, options = discriminator_step, [latent, latent], {"random": torch.Generator()}
    with pytest.raises(NonFiniteError, match=f"the {which}'s {what}.*; the update was not made"):
        step(
            generator, discriminator, optimizer, LOSSES["non-saturating"], *batches,
            **options,
        )  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("nonfinite") / "run"
    run = RunDirectory(out)
    config = RunConfig("static", 0, SETTINGS)
    prepare_run(config, run)
    assert not execute(config, run, Images(StackedDigits()), stop=(out / "checkpoint-before.pt").exists)
    return out


@pytest.fixture
def run(trained, tmp_path) -> RunDirectory:
    """A copy of the run, to be spoilt."""
    return RunDirectory(shutil.copytree(trained, tmp_path / "run"))


SPREAD = {
    "weight": (
        lambda state: state.discriminator.get_parameter(f"{SCORE}.original"),
        "step 5: layer 'score': the weight holds NaN or inf",
    ),
    "moment": (
        lambda state: state.generator_optimizer.state[next(state.generator.parameters())]["exp_avg_sq"],
        "step 6: NaN or inf in the generator's optimizer's exp_avg_sq of start.weight; no checkpoint was made of it",
    ),
    "batch norm": (
        lambda state: state.generator.get_buffer("norm.running_var"),
        "step 6: NaN or inf in the generator's buffer norm.running_var; no checkpoint was made of it",
    ),
}


@pytest.mark.parametrize("where", SPREAD)
def test_what_no_loss_shows_is_never_saved(run, where, monkeypatch):
    tensor, message = SPREAD[where]
    whole = run.checkpoint.read_bytes()
    assert torch.load(run.checkpoint, weights_only=True)["step"] == 4
    original = specreg.Monitor.step

    def step(monitor, iteration):
        if iteration == 5:
            poison(tensor(states[0]), float("inf"))
            if where == "weight":
                specreg.spectra(monitor.module)
        return original(monitor, iteration)

    states: list[TrainingState] = []
    monkeypatch.setattr(specreg.Monitor, "step", step)
    build = build_state
    monkeypatch.setattr("specreg.experiments.run.build_state", lambda *given: states.append(build(*given)) or states[0])
    with pytest.raises(NonFiniteError) as error:
        execute(RunConfig("static", 0, SETTINGS), run, Images(StackedDigits()))
    assert str(error.value).startswith(message)
    assert run.checkpoint.read_bytes() == whole
    assert not run.complete


def test_the_command_line_ends_with_exit_code_3(run, capsys):
    state = torch.load(run.checkpoint, weights_only=True)
    poison(state["generator"]["start.weight"])
    torch.save(state, run.checkpoint)
    before = run.checkpoint.read_bytes()
    assert main(["train", "--quiet", "--out", str(run.path)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    said = "step 5: the discriminator's loss is nan (NaN or inf first in the generator's parameter"
    assert error.startswith(f"specreg: error: training diverged: {said}")
    assert "the last checkpoint is kept" in error
    assert run.checkpoint.read_bytes() == before
    assert not run.complete


def test_points_that_overflow_are_divergence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorder, "sample_images", lambda generator, count: torch.full((count, 2), math.inf))
    options = ["--steps", "2", "--evaluate-every", "1", "--samples", "200"]
    assert main(["train", "--quiet", "--data", "ring", "--out", str(tmp_path / "run"), *options]) == 3
    error = capsys.readouterr().err
    assert "training diverged: step 1: the generated points hold NaN or inf" in error
    assert error.endswith("; no checkpoint had been written\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("dynamic", 50),
        pytest.param("dynamic", 250, marks=pytest.mark.soak),
        pytest.param("static", 250, marks=pytest.mark.soak),
    ],
)
def test_half_precision_with_compensation_stays_finite(method, steps, tmp_path):
    out = tmp_path / "run"
    options = ["--steps", str(steps), "--d-steps", "2", "--d-channels", "4", "--g-channels", "4", "--latent", "8"]
    options += ["--batch-size", "4", "--samples", "64", "--reference", "64", "--no-tensorboard"]
    options += ["--evaluate-every", "0", "--log-every", "1", "--precision", "bf16", "--method", method]
    options += ["--dynamic.start", "20"] if method == "dynamic" else []
    # In a process of its own: one process has one precision.
    assert train_run(out, *options)[0] == 0
    losses = [record["d_loss"] for record in RunDirectory(out).series("metrics")]
    assert len(losses) == steps
    assert all(abs(loss) < 10 for loss in losses)
    assert json.loads((out / "result.json").read_text())["compensations"] >= 2 * steps // 5 - 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "dtype", "updates"),
    [
        ("static", torch.float16, 200),
        ("dynamic", torch.bfloat16, 200),
        *(pytest.param(scheme, dtype, 500, marks=pytest.mark.soak)
          for scheme in ("static", "dynamic") for dtype in (torch.float16, torch.bfloat16)),
    ],
)  # fmt: skip
def test_stored_and_computed_in_half_precision(scheme, dtype, updates):
    """Updates of a discriminator whose weights themselves are in half precision, and under a scaled autocast."""
    for stored in (torch.float32, dtype):
        torch.manual_seed(0)
        discriminator = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(8, 8, 4, 2, 1), nn.LeakyReLU(),
            nn.Flatten(), nn.Linear(128, 1),
        ).to(stored)  # fmt: skip
        specreg.spectral_norm(discriminator)
        verb = {"static": specreg.static_compensation, "dynamic": specreg.dynamic_compensation}[scheme]
        compensator = verb(discriminator, start=0)
        optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.02)
        scaler = torch.amp.GradScaler("cpu", enabled=stored != dtype and dtype == torch.float16)
        for _ in range(updates):
            real, fake = torch.randn(4, 3, 8, 8, dtype=stored), torch.rand(4, 3, 8, 8, dtype=stored)
            with torch.autocast("cpu", dtype, enabled=stored != dtype):
                scores = discriminator(torch.cat([real, fake]))
            loss = torch.relu(1 - scores[:4].float()).mean() + torch.relu(1 + scores[4:].float()).mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            compensator.step()
        assert compensator.acted == updates // 5 - (scheme == "dynamic")  # whose first acting call takes the record
        for name, s in specreg.spectra(discriminator).items():
            assert bool(torch.isfinite(s).all()), name
            assert 0.01 < s.max() < 100, name
        if scheme == "static":
            compensator.every = 1
            compensator.step()
            assert compensator.satisfied()


def test_a_decomposition_that_does_not_converge_is_made_another_way_and_said(monkeypatch, caplog):
    weight = torch.randn(40, 90)
    layers = [nn.Linear(90, 40, bias=False) for _ in range(2)]
    for layer in layers:
        layer.weight.data.copy_(weight)
    specreg.static_compensation(layers[0]).step()
    wanted = layers[0].weight.detach()

    def refuse(*_, **__):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    for solver in ("eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, solver, refuse)
    exact, calls = torch.linalg.svd, []

    def first_refuses(matrix, **options):
        calls.append(matrix.shape)
        return refuse() if len(calls) == 1 else exact(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", first_refuses)
    specreg.static_compensation(layers[1]).step()
    assert torch.allclose(layers[1].weight, wanted, atol=1e-5)
    assert calls == [(40, 90), (90, 40)]
    assert caplog.text.count("eigendecomposition of a Gram matrix did not converge, trying the next way") == 2
    monkeypatch.setattr(torch.linalg, "svd", refuse)
    with pytest.raises(torch.linalg.LinAlgError):
        specreg.static_compensation(layers[1]).step()


def test_a_discriminator_that_learns_nothing_is_said_once(run, caplog):
    """Finite, and no spectrum falls: a last rectifier that lets nothing through ends a training all the same."""
    run.write("config", asdict(EVALUATED))
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    checkpoint["discriminator"]["blocks.3.conv2.bias"].fill_(-1e6)
    torch.save(checkpoint, run.checkpoint)
    assert execute(EVALUATED, run, Images(StackedDigits()))
    step = checkpoint["step"] + 1
    message = "its gradient is 0 on real, generated and interpolated samples: neither network learns from them"
    assert run.series("events") == [{"step": step, "event": "dead discriminator", "message": message}]
    assert [record["step"] for record in run.series("sensitivity")] == list(range(step, 7))
    assert caplog.text.count("the discriminator is dead") == 1


def test_a_small_gradient_is_not_a_dead_one(run, monkeypatch):
    run.write("config", asdict(EVALUATED))
    small = {"real": 1.23456789e-8, "generated": 0.0, "interpolated": 0.0}
    monkeypatch.setattr("specreg.experiments.recorder.gradient_norms", lambda *_, **__: small)
    assert execute(EVALUATED, run, Images(StackedDigits()))
    assert run.series("sensitivity")[-1]["gradient_norms"]["real"] == 1.23457e-8
    assert run.series("events") == []


def test_a_run_records_decompositions_that_did_not_converge(run, monkeypatch):
    values, steps, refused = torch.linalg.svdvals, [], []

    def refuse_once(matrix):
        if steps and not refused:
            refused.append(matrix.shape)
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return values(matrix)

    monkeypatch.setattr(torch.linalg, "svdvals", refuse_once)
    assert execute(RunConfig("static", 0, SETTINGS), run, Images(StackedDigits()), stop=lambda: steps.append(1))
    (event,) = run.series("events")
    assert (event["step"], event["event"]) == (6, "fallback")
    assert event["message"].startswith("singular values did not converge, trying the next way")


def test_a_step_that_is_made_again_after_a_kill_warns_once(run, monkeypatch):
    config, step = RunConfig("static", 0, SETTINGS), Compensator.step

    def warning(compensator):
        logging.getLogger("specreg.spectra").warning("did not converge")
        return step(compensator)

    def killed():
        raise KeyboardInterrupt

    monkeypatch.setattr(Compensator, "step", warning)
    with pytest.raises(KeyboardInterrupt):
        execute(config, run, Images(StackedDigits()), stop=killed)
    assert [event["step"] for event in run.series("events")] == [5]
    assert not execute(config, run, Images(StackedDigits()), stop=lambda: True)
    assert [event["step"] for event in run.series("events")] == [5]

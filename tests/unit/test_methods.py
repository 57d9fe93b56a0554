"""One record a method: configuration, command line, training and report follow from it."""

import inspect
import json
from dataclasses import asdict, fields, replace

import pytest

import specreg
from runs import make_run
from specreg.cli import main
from specreg.data.digits import StackedDigits
from specreg.experiments.config import RunConfig
from specreg.experiments.methods import _EVIDENCE, METHODS, GuardOptions, MethodOptions
from specreg.experiments.run import build_state, prepare_run
from specreg.experiments.sources.images import Images
from specreg.files import write_json
from specreg.records import RunDirectory
from specreg.report.figures import styles
from specreg.report.runs import Run, open_cells
from specreg.training.loop import TrainingConfig, train
from trainings import SMALL

VERBS = {
    "static": specreg.static_compensation,
    "dynamic": specreg.dynamic_compensation,
    "guard": specreg.Guard,
    "oni": specreg.orthogonalize,
}
WITH_OPTIONS = [method for method in METHODS.values() if method.options is not None]


@pytest.mark.parametrize("name", VERBS)
def test_the_labs_defaults_are_the_librarys(name):
    parameters = inspect.signature(VERBS[name]).parameters
    options = vars(METHODS[name].options())
    for own in ("roll_back", "evidence"):  # the lab's: the library takes a pin and the states instead
        options.pop(own, None)
    assert options == {option: parameters[option].default for option in options}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_one_step(name):
    training = TrainingConfig(steps=1, batch_size=4)
    state = build_state(RunConfig(name, 0, replace(SMALL, training=training)), Images(StackedDigits()))
    before = [parameter.detach().clone() for parameter in state.discriminator.parameters()]
    train(state, training)
    assert state.step == training.steps
    moved = [not old.equal(new) for old, new in zip(before, state.discriminator.parameters(), strict=True)]
    assert any(moved)
    assert all(parameter.isfinite().all() for parameter in state.discriminator.parameters())


def test_names_titles_and_colours_are_distinct():
    for attribute in ("title", "colour", "key", "about"):
        assert len({getattr(method, attribute) for method in METHODS.values()}) == len(METHODS), attribute


def test_every_option_is_one_of_the_command_line_and_of_the_configuration(capsys):
    configured = asdict(RunConfig())["settings"]["methods"]
    assert list(configured) == [method.key for method in WITH_OPTIONS]
    with pytest.raises(SystemExit):
        main(["compare", "--methods", ",".join(METHODS), "--help"])
    shown = capsys.readouterr().out
    for method in WITH_OPTIONS:
        for option in fields(method.options):
            assert f"--{method.name}.{option.name.replace('_', '-')}" in shown
            assert option.name in configured[method.key]


def test_any_evidence_is_all_that_switches_the_librarys_guard_on():
    assert _EVIDENCE["any"] == inspect.signature(specreg.Guard).parameters["states"].default


def test_its_options_reach_the_guard(monkeypatch):
    given = {}

    def guard(monitor, **options):
        given.update(options)

    monkeypatch.setattr("specreg.library.Guard", guard)
    options = MethodOptions(guard=GuardOptions(keep=3, every=7, scale="unit", evidence="coverage"))
    build_state(RunConfig("guard", 0, replace(SMALL, methods=options)), Images(StackedDigits()))
    states = ("losing", "never learnt", "lost")
    assert given == {"states": states, "pin": None, "keep": 3, "every": 7, "scale": "unit"}


def test_the_guard_goes_back_if_told_to():
    options = MethodOptions(guard=GuardOptions(roll_back=True))
    state = build_state(RunConfig("guard", 0, replace(SMALL, methods=options)), Images(StackedDigits()))
    assert state.compensator.pin is state.pin is not None


def test_a_run_says_how_its_method_is_called_and_drawn(tmp_path):
    prepare_run(RunConfig("d-optimal"), RunDirectory(tmp_path / "run"))
    said = json.loads((tmp_path / "run" / "method.json").read_text())
    assert said == {"name": "d-optimal", "title": "SN + D-optimal", "colour": "#00838f", "order": 5}


def test_the_report_orders_names_and_draws_methods_as_their_runs_say(tmp_path):
    for name in ("unheard-of", "none", "static", "sn"):
        make_run(tmp_path / name, name)
    (tmp_path / "unheard-of" / "method.json").unlink()
    (cell,) = open_cells(tmp_path / name for name in ("unheard-of", "none", "static", "sn"))
    runs = cell.runs
    assert [run.group for run in runs] == ["SN", "static SR", "no normalization", "unheard-of"]
    colours = [style.colour for style in styles(runs).values()]
    assert colours[:3] == [METHODS[name].colour for name in ("sn", "static", "none")]
    assert colours[3] not in {method.colour for method in METHODS.values()}


@pytest.mark.parametrize(
    "changed", [{"title": 3}, {"colour": "red;"}, {"colour": None}, {"order": "1"}, {"order": True}, {"order": None}]
)
def test_a_damaged_record_of_the_method_is_named(changed, tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run / "method.json", {"title": "SN", "colour": "#c44e52", "order": 0} | changed)
    with pytest.raises(ValueError, match=r"method\.json is damaged"):
        Run(RunDirectory(run))

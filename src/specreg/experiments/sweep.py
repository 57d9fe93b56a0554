"""Sweeps: a grid of methods, cells and seeds as runs with deterministic names, CELL/METHOD-seedN.

Sweeps of one preset into one folder add up; docs/architecture.md has the folder.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from specreg.data.arrays import ImageArrays
from specreg.data.open import find_images
from specreg.experiments.config import RunConfig, Settings, from_dict, refusal
from specreg.experiments.jobs import Job
from specreg.experiments.presets import Cell
from specreg.experiments.run import check_apart, check_data, checked_config, num_images, prepare_run, saved_config
from specreg.experiments.sources import Source, kind_of, open_checked
from specreg.experiments.sources.images import Images
from specreg.files import exists, prepare_directory, read_json, write_json
from specreg.losses import LOSSES
from specreg.names import printable
from specreg.records import RunDirectory

COMPARISON = "runs"  # the cell of a comparison, and so the folder of its runs


@dataclass(frozen=True)
class Plan:
    """What a sweep is to run."""

    preset: str  # "" for a comparison
    cells: Sequence[Cell]
    seeds: Sequence[int]

    def configs(self, cell: Cell) -> dict[str, RunConfig]:
        """Return a cell's runs by the names of their folders."""
        return {
            f"{method}-seed{seed}": RunConfig(method, seed, cell.settings)
            for seed in self.seeds
            for method in cell.methods
        }


def lay_out(out: Path, plan: Plan, *, retry: bool = False) -> list[Job]:
    """Lay out the run directories of a plan; complete runs are done already, failed ones wait only for ``retry``.

    Where the folder, the data or a run do not fit it is a ValueError, and nothing is changed.
    """
    merged = _merged(out, plan)
    if lacking := [cell for cell in plan.cells if not cell.settings.data.data]:
        wanted = " and ".join(dict.fromkeys(cell.images for cell in lacking))
        raise ValueError(
            f"{lacking[0].name} trains on {wanted}, which are not shipped: say where they are with --data"
            + (", and choose the cells of one data set with --cells" if " and " in wanted else "")
        )
    planned = {out / cell.name / name: config for cell in plan.cells for name, config in plan.configs(cell).items()}
    made_of = {(cell.settings.data, cell.settings.model): cell.settings for cell in plan.cells}
    images = {made: num_images(open_checked(settings)) for made, settings in made_of.items()}
    for cell in plan.cells:  # all before any is changed
        for name in merged["cells"][cell.name]["runs"]:
            check_data(RunDirectory(out / cell.name / name), images[cell.settings.data, cell.settings.model])
    for path, config in planned.items():
        run = RunDirectory(path)
        if checked_config(run, config) not in (None, config):
            with run.lock():  # nobody writes what is to be changed
                pass
    prepare_directory(out)
    with RunDirectory(out).lock(5.0):  # another sweep may have added its cells since, or add them just now
        write_json(out / "sweep.json", _merged(out, plan))
    jobs = []
    for path, config in planned.items():
        run = RunDirectory(path)
        prepare_run(config, run)
        state, error = ("done" if run.complete else "waiting"), ""
        if state == "waiting" and not retry and (failure := run.read("failed")) is not None:
            state, error = "failed", f"{printable(str(failure.get('error')))} (--retry tries it again)"
        jobs.append(Job(config, run, state, error))
    return jobs


def num_done(out: Path, plan: Plan) -> list[int]:
    """Return of each cell how many of its runs have made all the steps that are planned.

    ValueError, as of :func:`lay_out`, where the folder or a run does not fit the plan; cells whose data are not named
    yet are only counted.
    """
    _merged(out, replace(plan, cells=[cell for cell in plan.cells if cell.settings.data.data]))
    counts = []
    for cell in plan.cells:
        done, wanted = 0, cell.settings.training.steps
        for name, config in plan.configs(cell).items():
            run = RunDirectory(out / cell.name / name)
            saved = checked_config(run, config) if cell.settings.data.data else saved_config(run)
            done += run.complete and saved is not None and saved.settings.training.steps >= wanted
        counts.append(done)
    return counts


def saved_settings(out: Path) -> Settings | None:
    """Return the settings that a comparison's folder has, None where it has none."""
    _, cells = _saved(out)
    return cells[COMPARISON][0] if COMPARISON in cells else None


@dataclass(frozen=True)
class Cost:
    """What one run costs."""

    d_parameters: int
    g_parameters: int
    real_images: int  # that the discriminator sees in the whole training
    multiply_adds: int  # of the whole training's convolutions and matrix products


def cost(cell: Cell) -> Cost:
    """Count what one run of a cell costs, without running it.

    A forward pass is counted on networks without memory (torch's flop counter, two operations a multiply-add); a
    backward pass costs twice as much, once for the weights and once for the inputs. With f_G and f_D for one image, a
    generator step of n_dis discriminator steps with batches of N, and M images for the generator itself, costs

        n_dis N (f_G + 2 * 3 f_D) + M (3 f_G + 2 f_D),

    with 4 f_D in the end where the loss is relativistic: as many real images go along with the generator's.
    Spectral normalization, compensation, a gradient penalty and evaluations are not counted.
    """
    settings, training = cell.settings, cell.settings.training
    source: Source
    data = settings.data
    has_own_classes = bool(data.data) and data.conditional and (data.data == "digits" or data.stacked)
    if cell.images and kind_of(data) is Images and not has_own_classes:
        source = Images(_stand_in(cell))
        source.check(replace(settings, data=replace(data, data=data.data or cell.images)))
    else:
        source = open_checked(settings)
    with torch.device("meta"):
        generator, discriminator = source.make_generator(settings), source.make_discriminator(settings)
        labels = (torch.zeros(1, dtype=torch.long),) if settings.data.conditional else ()
        latent = torch.zeros(1, settings.model.latent)
        g_cost = _multiply_adds(generator, latent, *labels)
        d_cost = _multiply_adds(discriminator, generator(latent, *labels), *labels)
    batch = training.batch_size * training.accumulate
    d_steps = training.d_steps * batch * (g_cost + 6 * d_cost)
    judged = 4 if LOSSES[training.loss].relativistic else 2
    g_steps = training.generator_batch * batch * (3 * g_cost + judged * d_cost)
    return Cost(
        d_parameters=sum(parameter.numel() for parameter in discriminator.parameters()),
        g_parameters=sum(parameter.numel() for parameter in generator.parameters()),
        real_images=training.steps * training.d_steps * batch,
        multiply_adds=training.steps * (d_steps + g_steps),
    )


def _stand_in(cell: Cell) -> ImageArrays:
    """Return no images, but with the sides and classes of those that the user has to give."""
    data, count = cell.settings.data, cell.num_classes
    side = find_images(data.data).side(data.data_split) if data.data and not data.image_size else data.image_size
    if side is None:
        raise ValueError(f"{cell.name}: the cost depends on the images' size: give --image-size")
    if data.data and data.conditional:
        count = find_images(data.data).num_classes(data.data_split)
    classes = tuple(map(str, range(count)))
    return ImageArrays(cell.images, torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0), classes)


def _multiply_adds(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(*inputs)
    return int(counter.get_total_flops()) // 2


def _merged(out: Path, plan: Plan) -> dict[str, Any]:
    """Return what ``sweep.json`` is to hold: what it holds, and the plan's cells and runs."""
    preset, cells = _saved(out)
    if not cells and exists(out / "config.json"):
        raise ValueError(f"{out} holds a run: choose another folder")
    if cells and preset != plan.preset:
        raise ValueError(f"{out} holds {f'a sweep of the preset {preset!r}' if preset else 'a comparison'}: choose "
                         "another folder")  # fmt: skip
    for cell in plan.cells:
        check_apart(out, cell.settings.data.data)
        settings, _, runs = cells.get(cell.name, (cell.settings, [], []))
        if settings != cell.settings:
            if why := refusal(settings, cell.settings):
                raise ValueError(
                    f"{out} holds {cell.name} with other settings ({why}): "
                    f"repeat the old ones to go on with it, or choose another folder"
                )
            is_longer = settings.training != cell.settings.training  # or its data have moved
            if is_longer and (shorter := [name for name in runs if name not in plan.configs(cell)]):
                raise ValueError(f"{out} holds {', '.join(shorter)}, too, to be compared after as many steps: give "
                                 "their methods and seeds as well")  # fmt: skip
        runs = list(dict.fromkeys([*runs, *plan.configs(cell)]))
        cells[cell.name] = (cell.settings, list(cell.changes), runs)
    return {
        "preset": plan.preset,
        "cells": {
            name: {"changes": changed, "runs": runs, "settings": asdict(settings)}
            for name, (settings, changed, runs) in cells.items()
        },
    }


def _saved(out: Path) -> tuple[str, dict[str, tuple[Settings, list[str], list[str]]]]:
    """Return the preset of a folder, and settings, changes and names of runs of its cells."""
    path = out / "sweep.json"
    if not exists(path):
        return "", {}
    saved = read_json(path)
    try:
        return str(saved["preset"]), {
            name: (from_dict(Settings, cell["settings"]), list(map(str, cell["changes"])), list(map(str, cell["runs"])))
            for name, cell in dict(saved["cells"]).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold a sweep ({type(error).__name__}: {error}): choose another folder"
        ) from error

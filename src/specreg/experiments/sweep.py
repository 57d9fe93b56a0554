"""Sweeps: a grid of methods, cells and seeds as runs with deterministic names, CELL/METHOD-seedN.

A sweep's folder holds the runs and ``sweep.json``: the preset, and for each cell its settings, in what they differ
from the preset's, and the names of its runs. Sweeps of one preset into one folder add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from specreg.data.arrays import ImageArrays
from specreg.experiments.config import Method, RunConfig, Settings, differences, from_dict, to_dict
from specreg.experiments.jobs import Job
from specreg.experiments.presets import Cell
from specreg.experiments.run import prepare_run
from specreg.experiments.sources import kind_of, open_checked, open_source
from specreg.experiments.sources.images import Images
from specreg.experiments.sources.source import Source
from specreg.files import prepare_directory, read_json, write_json
from specreg.names import printable
from specreg.records import RunDirectory


@dataclass(frozen=True)
class Plan:
    """What a sweep is to run.

    Attributes:
        cells: with the overrides in their settings.
        changes: by cell, in what its settings differ from the preset's: "key old -> new".
        methods: for every cell; empty are the cell's own.
    """

    preset: str
    cells: Sequence[Cell]
    changes: dict[str, list[str]]
    methods: Sequence[Method]
    seeds: Sequence[int]

    def configs(self, cell: Cell) -> dict[str, RunConfig]:
        """Return a cell's runs by the names of their folders."""
        methods = dict.fromkeys(self.methods or cell.methods)
        return {
            f"{method}-seed{seed}": RunConfig(method, seed, cell.settings)
            for seed in dict.fromkeys(self.seeds) for method in methods
        }  # fmt: skip


def changes(before: Sequence[Cell], after: Sequence[Cell]) -> dict[str, list[str]]:
    """Return by cell in what its settings differ from the preset's; data that only the user can name do not count."""
    found = {}
    for old, new in zip(before, after, strict=True):
        given = replace(old.settings.data, data=new.settings.data.data) if old.images else old.settings.data
        found[old.name] = differences(replace(old.settings, data=given), new.settings)
    return found


def lay_out(out: Path, plan: Plan, *, retry: bool = False) -> list[Job]:
    """Lay out the run directories of a sweep; complete runs are done already, and failed ones are passed over.

    Args:
        retry: let failed runs go on, too.

    Raises:
        ValueError: the folder holds a sweep of another preset or with other settings, data are missing or cannot be
            used, or the folder cannot be written; nothing is changed.
    """
    _merged(out, plan)
    if lacking := [cell for cell in plan.cells if not cell.settings.data.data]:
        wanted = " and ".join(dict.fromkeys(cell.images for cell in lacking))
        raise ValueError(
            f"{lacking[0].name} trains on {wanted}, which are not shipped: say where they are with --data"
            + (", and choose the cells of one data set with --cells" if " and " in wanted else "")
        )
    planned = [(cell, name, config) for cell in plan.cells for name, config in plan.configs(cell).items()]
    for cell in {(cell.settings.data, cell.settings.model): cell for cell in plan.cells}.values():
        open_checked(cell.settings)
    prepare_directory(out)
    with RunDirectory(out).lock():  # another sweep may have added its cells since
        write_json(out / "sweep.json", _merged(out, plan))
    jobs = []
    for cell, name, config in planned:
        run = RunDirectory(out / cell.name / name)
        prepare_run(config, run)
        jobs.append(_job(cell, config, run, retry))
    return jobs


def progress(out: Path, plan: Plan) -> dict[str, int]:
    """Return how many runs of each cell are complete in a folder, which need not exist."""
    return {
        cell.name: sum(RunDirectory(out / cell.name / name).complete for name in plan.configs(cell))
        for cell in plan.cells
    }


@dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
        d_parameters, g_parameters: of the two networks.
        real_images: that the discriminator sees in the whole training.
        multiply_adds: of the whole training's convolutions and matrix products.
    """

    d_parameters: int
    g_parameters: int
    real_images: int
    multiply_adds: int


def cost(cell: Cell) -> Cost:
    """Count what one run of a cell costs, without running it.

    A forward pass is counted on networks without memory (torch's flop counter, two operations a multiply-add); a
    backward pass costs twice as much, once for the weights and once for the inputs. With f_G and f_D for one image, a
    generator step of n_dis discriminator steps with batches of N, and M images for the generator itself, costs

        n_dis N (f_G + 2 * 3 f_D) + M (3 f_G + 2 f_D).

    Spectral normalization, compensation, a gradient penalty and evaluations are not counted.
    """
    settings, training = cell.settings, cell.settings.training
    source: Source
    if cell.images and kind_of(settings.data) is Images:
        source = Images(_stand_in(cell))
        source.check(replace(settings, data=replace(settings.data, data=cell.images)))
    else:
        source = open_source(settings)
    with torch.device("meta"):
        generator, discriminator = source.make_generator(settings), source.make_discriminator(settings)
        labels = (torch.zeros(1, dtype=torch.long),) if settings.data.conditional else ()
        latent = torch.zeros(1, settings.model.latent)
        g_cost = _multiply_adds(generator, latent, *labels)
        d_cost = _multiply_adds(discriminator, generator(latent, *labels), *labels)
    batch = training.batch_size * training.accumulate
    d_steps = training.d_steps * batch * (g_cost + 6 * d_cost)
    g_steps = training.generator_batch * batch * (3 * g_cost + 2 * d_cost)
    return Cost(
        d_parameters=sum(parameter.numel() for parameter in discriminator.parameters()),
        g_parameters=sum(parameter.numel() for parameter in generator.parameters()),
        real_images=training.steps * training.d_steps * batch,
        multiply_adds=training.steps * (d_steps + g_steps),
    )


def _stand_in(cell: Cell) -> ImageArrays:
    """Return no images, but with the sides and classes of those that the user has to give."""
    side = cell.settings.data.image_size
    if side is None:
        raise ValueError(f"{cell.name}: the cost depends on the images' size: give --image-size")
    classes = tuple(map(str, range(cell.num_classes)))
    return ImageArrays(cell.images, torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0), classes)


def _multiply_adds(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(*inputs)
    return int(counter.get_total_flops()) // 2


def _job(cell: Cell, config: RunConfig, run: RunDirectory, retry: bool) -> Job:
    failure = run.read("failed")
    if run.complete:
        return Job(config, run, "done", cell=cell.name)
    if failure is not None and not retry:
        return Job(config, run, "failed", f"{printable(str(failure.get('error')))} (--retry tries it again)", cell.name)
    return Job(config, run, cell=cell.name)


def _merged(out: Path, plan: Plan) -> dict[str, Any]:
    """Return what ``sweep.json`` is to hold: what it holds, and the plan's cells and runs."""
    path = out / "sweep.json"
    saved: dict[str, Any] = read_json(path) if path.exists() else {"preset": plan.preset, "cells": {}}
    try:
        preset, cells = str(saved["preset"]), dict(saved["cells"])
        known = {name: from_dict(Settings, one["settings"]) for name, one in cells.items()}
        runs = {name: list(map(str, one["runs"])) for name, one in cells.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold a sweep ({type(error).__name__}: {error}): choose another folder"
        ) from error
    if preset != plan.preset:
        raise ValueError(f"{out} holds a sweep of the preset {preset!r}: choose another folder")
    for cell in plan.cells:
        if cell.name in known and (changed := differences(known[cell.name], cell.settings)):
            raise ValueError(
                f"{out} holds {cell.name} with other settings ({'; '.join(changed)}): "
                f"repeat the old ones to go on with it, or choose another folder"
            )
        cells[cell.name] = {
            "changes": plan.changes[cell.name],
            "runs": list(dict.fromkeys([*runs.get(cell.name, []), *plan.configs(cell)])),
            "settings": to_dict(cell.settings),
        }
    return {"preset": preset, "cells": cells}

"""Methods side by side under one seed and one setting: which runs a comparison has."""

from collections.abc import Sequence
from pathlib import Path

from specreg.experiments.config import RunConfig, Settings, differences, from_dict, to_dict
from specreg.experiments.jobs import Job
from specreg.experiments.run import prepare_run
from specreg.experiments.sources import open_checked
from specreg.files import prepare_directory, read_json, write_json
from specreg.records import RunDirectory


def plan(out: Path, methods: Sequence[str], seeds: Sequence[int], settings: Settings) -> list[Job]:
    """Lay out the run directories of a comparison; complete runs are done already.

    Raises:
        ValueError: the folder holds a comparison with other settings, the data cannot be used, or the folder
            cannot be written; nothing is changed.
    """
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} must not be empty")
    configs = [RunConfig(method, seed, settings) for seed in dict.fromkeys(seeds) for method in dict.fromkeys(methods)]
    saved = saved_settings(out)
    if saved is not None and (changed := differences(saved, settings)):
        raise ValueError(
            f"{out} holds a comparison with other settings ({'; '.join(changed)}): "
            f"repeat the old ones to go on with it, or choose another folder"
        )
    open_checked(settings)
    prepare_directory(out)
    if saved is None:
        write_json(out / "comparison.json", to_dict(settings))
    jobs = []
    for config in configs:
        run = RunDirectory(out / "runs" / f"{config.method}-seed{config.seed}")
        prepare_run(config, run)
        jobs.append(Job(config, run, "done" if run.complete else "waiting"))
    return jobs


def all_runs(out: Path, jobs: Sequence[Job]) -> list[RunDirectory]:
    """Return the runs of a comparison's folder: those asked for, then what else is complete in it."""
    asked = [job.run for job in jobs]
    names = {run.path.name for run in asked}
    others = [RunDirectory(path) for path in sorted((out / "runs").iterdir()) if path.name not in names]
    return [*asked, *(run for run in others if run.complete)]


def saved_settings(out: Path) -> Settings | None:
    """Return the settings of the comparison in a folder, or None where there is none."""
    path = out / "comparison.json"
    if not path.exists():
        return None
    try:
        return from_dict(Settings, read_json(path))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a comparison's settings ({error})") from error

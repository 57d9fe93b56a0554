"""A run's numbers for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specreg.monitor.monitor import Monitor
from specreg.monitor.writers import TensorBoardWriter


class Board:
    """Event files beside a run's records: the same series, and the monitor's scalars, messages and pictures.

    Args:
        folder: where; TensorBoard is pointed at it or at a folder of runs.
        monitor: gets a writer of its snapshots.
        begin: the first step to come. Whatever the folder has from there on is hidden: a run that goes on from its
            checkpoint writes it again.
    """

    def __init__(self, folder: Path, monitor: Monitor, *, begin: int) -> None:
        # Imported here: it takes a quarter of a second, and a run may do without.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=begin)
        monitor.actions.append(TensorBoardWriter(monitor, self._writer))

    def add(self, series: str, record: Mapping[str, Any]) -> None:
        """Add a record's numbers: SERIES/KEY, and KEY/NAME where a key holds several by name; lists are left out."""
        for key, value in record.items():
            if isinstance(value, Mapping):
                self.add(key, {"step": record["step"], **value})
            elif key != "step" and value is not None and not isinstance(value, list):
                self._writer.add_scalar(f"{series}/{key}", value, record["step"])

    def flush(self) -> None:
        """Have everything on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        self._writer.close()

"""Readings of coverage by hand, and a meter that gives them."""

import torch

from specreg.monitor.coverage import Reading

NOTHING = torch.zeros(0)


def reading(missing, error=0.02, far=0.0):
    """Return a reading with an interval of twice the error."""
    interval = (missing - error, missing + error)
    return Reading(missing, interval, 2 * error, missing, far, NOTHING, NOTHING, NOTHING.long(), NOTHING.long())


class Meter:
    """In place of ``specreg.Coverage``: reads the missing shares one after the other, the last again and again."""

    def __init__(self, *missing):
        self.missing, self.num_readings = missing, 0

    def measure(self, generated):
        self.num_readings += 1
        return reading(self.missing[min(self.num_readings, len(self.missing)) - 1])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}

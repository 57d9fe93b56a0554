"""Words and definitions that the library and the report share; standard library only, below everything else."""

import math

# What the collapse detector says, from the mildest to the gravest.
STATES = ("healthy", "recovered", "collapsing", "collapsed")


def bulk_range(rank: int) -> tuple[int, int]:
    """Return the slice [begin, end) of the ratios that make the bulk: k = 2 to ceil(r/2), at least k = 2.

    The upper half, because the lower one falls in healthy trainings too (Liu et al. 2019, figures 1 to 4: s_r/s1 ends
    near 0.2 without collapse), and under static compensation is meant to.
    """
    return (1, max(2, math.ceil(rank / 2))) if rank > 1 else (0, 1)

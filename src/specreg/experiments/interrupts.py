"""Ctrl-C as a question that loops ask, so that they stop where they can be resumed."""

import contextlib
import signal
from collections.abc import Callable, Iterator

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT, SIGTERM and the end of the terminal (SIGHUP) into a flag that is asked for."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    for number in before:
        signal.signal(number, lambda signum, _: received.append(signum))
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C as a question that loops ask, so that they stop where they can be resumed."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT, SIGTERM and the end of the terminal (SIGHUP) into a flag that is asked for.

    What ``nohup`` makes a process ignore stays ignored, but not SIGINT, which a shell ignores for whatever it starts in
    the background, and which asks the processes of a comparison to stop.
    """
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # to which alone signals come
    taken = [n for n in STOPS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda signum, _: received.append(signum)) for number in taken if is_main}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def whole_imports() -> Iterator[None]:
    """Let Ctrl-C wait until a block of imports is done.

    An import that is broken off leaves half a module behind, and whatever tries it again fails for odd reasons, or goes
    on as if nothing had been asked.
    """
    with interruptible() as interrupted:
        yield
    if interrupted():
        raise KeyboardInterrupt

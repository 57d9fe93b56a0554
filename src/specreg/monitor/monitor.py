"""The monitor: snapshots of a module's spectra at a cadence, judged by the detector, and handed to actions."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import OutOfMemoryError, Tensor, nn

from specreg.layers.evaluation import evaluating, frozen_random_numbers
from specreg.layers.find import find
from specreg.layers.requirements import warn_of_doubts
from specreg.layers.selection import Selection, named, plainly_named_modules, unwrap
from specreg.monitor.coverage import Coverage, Reading, checked_state
from specreg.monitor.detector import Detector, checked_groups
from specreg.monitor.history import History
from specreg.monitor.modes import ModeJudge
from specreg.monitor.signal import NUM_AT_ONCE, Signal, SignalJudge, signal
from specreg.monitor.snapshot import spectra_of
from specreg.monitor.verdict import UNASKED, Answer, Verdict, combined
from specreg.names import State, check_function, check_type, default_groups, integer, reading_state, shown, suggestion
from specreg.processes import from_main

logger = logging.getLogger("specreg")

NUM_PROBED = 256  # samples that the discriminator's signal is measured on
_FEW_REAL, _FEW_GENERATED = 500, 100  # samples below which half of the modes may be lost unseen

Action = Callable[[Verdict], object]
# Returns generated and real samples of equal shape, (N, *).
Samples = Callable[[], tuple[Tensor, Tensor]]


class Monitor:
    """Watch the spectra of a discriminator, or of several networks, and say when they collapse.

    Reading changes no buffer, gradient or random number: a training with a monitor is bit for bit that without.

    Several networks in one module are *groups* of layers: each is judged as if it were alone, and the gravest verdict
    is that on the whole. By default the groups are the module's children that hold more than one layer each, if there
    are several of them (those of the only child that has layers, if there is just one), unless they follow each other
    in an ``nn.Sequential``. The blocks of a network that lie in attributes of their own look the same:
    ``groups={"discriminator": "*"}`` makes them one.

    Args:
        module: any module: plain, under spectral or weight normalization, compensated, compiled or wrapped.
        every: iterations between snapshots.
        detector: judges them; by default ``Detector()``.
        actions: called with each new verdict, in order; more may be appended to ``monitor.actions`` (see
            :mod:`specreg.monitor.actions` and :class:`specreg.Guard`).
        samples: returns generated and real samples, a thousand or more of each, the generator in eval mode:
            then the verdict also says whether modes are lost (:class:`specreg.Coverage`), and whether the discriminator
            still teaches. Of several processes, which all have to watch, only process 0 calls it, and the others wait:
            it must not communicate (call a wrapped generator's ``.module``).
        samples_every: iterations between such readings; each is made at the next snapshot, so that by default they
            fall on the first, 300, 500, 800, 1,000 and so on.
        coverage: the meter; by default made of the first real samples.
        scores: maps samples to the discriminator's scores; by default the module, if it can be called with them. It is
            called where ``samples`` is: give it the bare networks, too, and in eval mode those beside the module.
        groups: name -> the layers of one network, as names or globs, a name standing for everything below it, as in
            ``{"D": "netD", "G": ["netG", "mapping"]}``; each layer in exactly one group.
        only, skip: the layers to take, see :mod:`specreg.layers.find`, chosen when the monitor is made; all kinds by
            default.

    Attributes:
        layers: the names of the watched layers.
        groups: name -> its layers; "" is everything, or what is in no other default group.
        left_out: weight matrices that no layer is known for, and frozen layers beside trained ones, by name; without
            ``only`` a warning names them.
        history: the snapshots, compact.
        latest: the newest snapshot, layer name -> singular values in double precision.
        verdict: the newest verdict, None before the first snapshot.
        coverage: the meter; None before the first samples, and where another process reads them.
        reading: the meter's newest, None before the first.
        sampled: its iteration.
        actions: a list.

    Raises:
        TypeError: the detector, an action, ``samples``, ``scores`` or ``coverage`` is something else.
        ValueError: a bad option, ``coverage`` or ``scores`` without samples, no layer matched, or a layer is not in
            exactly one group.

    Example:
        >>> discriminator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> monitor = Monitor(discriminator, every=100)
        >>> for iteration in range(1, 301):
        ...     verdict = monitor.step(iteration)  # after the optimizer's step
        >>> verdict.state, monitor.history.iterations
        ('not judged', [1, 100, 200, 300])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        every: int = 100,
        detector: Detector | None = None,
        actions: Iterable[Action] = (),
        samples: Samples | None = None,
        samples_every: int = 250,
        coverage: Coverage | None = None,
        scores: Callable[[Tensor], Any] | None = None,
        groups: Mapping[str, str | Iterable[str]] | None = None,
        only: Selection = None,
        skip: Selection = None,
    ) -> None:
        self.module = module
        self.every = integer("every", every, at_least=1)
        check_type("detector", detector := detector or Detector(), Detector, "specreg.Detector(thresholds)")
        if samples is not None:
            check_function("samples", samples, "it returns generated and real samples when they are due")
        if scores is not None:
            check_function("scores", scores, "it maps samples to the discriminator's scores")
        verbs = ("measure", "state_dict", "load_state_dict")
        if coverage is not None and not all(callable(getattr(coverage, verb, None)) for verb in verbs):
            raise TypeError(f"coverage must be a specreg.Coverage, or have {', '.join(verbs)}: got "
                            f"{type(coverage).__name__}")  # fmt: skip
        for name, value in (("scores", scores), ("coverage", coverage)):
            if value is not None and samples is None:
                raise ValueError(f"{name} without samples is never asked: give samples=, too")
        check_type("actions", actions, Iterable, "a list of functions, if of one alone")
        self.detector = detector
        self.actions = list(actions)
        for action in self.actions:
            check_function("an action", action, "it is called with each verdict")
        self.history = History()
        self.latest: dict[str, Tensor] = {}
        self.verdict: Verdict | None = None
        self.coverage = coverage
        self._samples, self._samples_every = samples, integer("samples_every", samples_every, at_least=1)
        self._scores: Callable[[Tensor], Any] | None = module if scores is None else scores
        self._is_asked = scores is not None  # what a user's own function raises is the user's to see
        self._modes, self._signal = ModeJudge(), SignalJudge()
        self._answers: tuple[Answer, Answer] = (UNASKED, UNASKED)  # on coverage and signal, the newest
        self.sampled: int | None = None
        self._size: float | None = None  # the sum of all parameters' magnitudes before it is known to teach
        self.reading: Reading | None = None
        self._saved: Mapping[str, Tensor] | None = None  # the state of a meter that is made of the next samples
        self._told: Verdict | None = None  # the newest verdict, for those who were told of it before
        self._newest: int | None = None  # the last iteration that step() was told
        self._is_sparse = False  # snapshots are too far apart for the detector, which was said
        # Chosen once, so that gradients that are switched off for a step, or a new layer, change nothing of the series.
        with frozen_random_numbers():
            self._watched = find(module, embeddings=True, only=only, skip=skip, title="monitor")
            warn_of_doubts(self._watched)
        spectra_of(self._watched)  # a wrong choice fails here, not hours later
        self.layers, self.left_out = tuple(self._watched), self._watched.left_out
        self.groups = _networks(module, self.layers) if groups is None else _grouped(groups, self.layers)
        if (lines := self.left_out.lines()) and only is None:
            logger.warning("monitor: %s", "; ".join(lines))

    def step(self, iteration: int) -> Verdict:
        """Take a snapshot if one is due, at the first call and at each multiple of ``every``, and judge it.

        Args:
            iteration: of the whole training, not of an epoch; never falling, in steps of any size.

        Returns:
            The newest verdict; its ``changed`` is True at the call alone whose snapshot changed the state.

        Raises:
            TypeError: ``samples`` returned no two tensors.
            ValueError: the iteration is no integer or lower than before, a weight holds NaN or inf (names the layer),
                or samples that :meth:`specreg.Coverage.measure` refuses. Other processes raise what the first did.
        """
        iteration = self._counted(iteration)
        last = self.history.iterations[-1] if self.history.iterations else None
        due = last is None or iteration // self.every > last // self.every
        if not due and self._told is not None:
            return self._told
        return self._take(
            iteration,
            sampling=self.sampled is None or iteration // self._samples_every > self.sampled // self._samples_every,
        )

    def snapshot(self, iteration: int) -> Verdict:
        """Take a snapshot and read the samples now, whether due or not, judge them and call the actions.

        What :meth:`step` has done at this iteration is not done again; samples that it did not read are read, and the
        actions get a second verdict of this iteration.

        Raises:
            ValueError: as :meth:`step`.
        """
        iteration = self._counted(iteration)
        spectra = self.detector.verdict() if self.history.iterations[-1:] == [iteration] else None
        if spectra is None or self._told is None:
            return self._take(iteration, sampling=True)
        if self._samples is None or self.sampled == iteration:
            return self._told
        self._read_samples(iteration, self._samples)
        return self._judge(spectra)

    def _counted(self, iteration: int) -> int:
        """Return an iteration that is not before the newest, and take it for the newest."""
        iteration = integer("iteration", iteration)
        newest = iteration if self._newest is None else self._newest
        if iteration < newest:
            raise ValueError(
                f"iterations must not go back: got {iteration} after {newest}; count them over the whole training, "
                "not anew in each epoch"
            )
        self._newest = iteration
        return iteration

    def _take(self, iteration: int, *, sampling: bool) -> Verdict:
        latest = spectra_of(self._watched)
        self.history.require_next(iteration, latest)  # nothing is changed by what is refused
        gap, window = iteration - (self.history.iterations or [iteration])[-1], self.detector.thresholds.window
        if gap > window and not self._is_sparse:
            self._is_sparse = True
            logger.warning(
                "monitor: snapshots lie %d iterations apart, and a fall is fast within %d: take them more often, or "
                "give detector=Detector(Thresholds(window=..., long_window=...)), each of several snapshots "
                "(in the lab --detector.window and --detector.long-window)", gap, window,
            )  # fmt: skip
        if sampling and self._samples is not None:
            self._read_samples(iteration, self._samples)
        verdict = self.detector.update(iteration, latest, self.groups)
        self.history.add(iteration, latest)
        self.latest = latest
        return self._judge(verdict)

    def _judge(self, verdict: Verdict) -> Verdict:
        """Weigh what is said of the spectra with the two other answers, keep the verdict and call the actions."""
        if self._samples is not None:
            before = frozenset[State](("not judged",)) if self.verdict is None else self.verdict.states
            verdict = combined(verdict, *self._answers, before)
        else:
            verdict = _of_spectra_alone(verdict)
        self.verdict, self._told = verdict, verdict.unchanged()
        for action in self.actions:
            action(verdict)
        return verdict

    def watched_names(self) -> dict[str, str]:
        """Return each watched module's name -> that of its layer: modules that share a weight are one layer."""
        return {name: layer.name for layer in self._watched.values() for name in (layer.name, *layer.shared_with)}

    def _read_samples(self, iteration: int, samples: Samples) -> None:
        # What is judged goes to all processes, so that all say the same, and act alike.
        weight = next(iter(self._watched.values())).tensor
        self.reading, taught, made = from_main(lambda: self._measure(samples), beside=weight)
        has_begun = taught is None or taught.gradient > 0 or self._has_moved()
        self._saved = self._saved if made is None else made
        self._answers = (
            self._modes.update(iteration, self.reading),
            UNASKED if taught is None else self._signal.update(iteration, taught, has_begun=has_begun),
        )
        self.sampled = iteration

    def _has_moved(self) -> bool:
        """Tell whether the module's parameters have changed since this was asked first."""
        size = sum(float(part.detach().double().abs().sum()) for part in self.module.parameters())
        self._size = size if self._size is None else self._size
        return size != self._size

    def _measure(self, samples: Samples) -> tuple[Reading, Signal | None, dict[str, Tensor] | None]:
        """Return what is missing, the discriminator's signal, and the state of the meter if it was made for this."""
        with frozen_random_numbers():
            pair: Any = samples()  # of a user's function
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                got = len(pair) if isinstance(pair, tuple | list) else type(pair).__name__
                raise TypeError(f"samples must return two tensors, generated and real samples, got {got}")
            generated, real = pair
            made = None
            if self.coverage is None:
                self.coverage = Coverage(real)
                if self._saved is not None:
                    self.coverage.load_state_dict(self._saved)
                made = self.coverage.state_dict()
            reading = self.coverage.measure(generated)
            if self.reading is None:
                _warn_of_few(len(generated), None if made is None else len(real))
            taught = None
            if self._scores is not None:
                count = min(len(generated), len(real), NUM_PROBED)
                count = count - count % 4 or count  # whole groups, see signal()
                taught = self._signal_of(self._scores, real[:count], generated[:count])
        return reading, taught, made

    def _signal_of(self, scores: Callable[[Tensor], Any], real: Tensor, generated: Tensor) -> Signal | None:
        """Return the discriminator's signal; None, from now on, if it cannot be called with samples alone.

        Outside of autocast a network takes one precision alone, in general that of its first weight. A user's own
        function may begin with others: it gets the samples as they are first.
        """
        given = [real, generated]
        dtypes = (part.dtype for part in self.module.parameters() if part.is_floating_point() or part.is_complex())
        dtype = next(dtypes, generated.dtype)
        is_cast = dtype.is_floating_point and any(part.is_floating_point() and part.dtype != dtype for part in given)
        pairs = [given]
        if is_cast:
            cast = [part.to(dtype) if part.is_floating_point() else part for part in given]
            pairs = [given, cast] if self._is_asked else [cast, given]
        errors: list[Exception] = []
        for pair in pairs:
            try:
                with evaluating(self.module):  # scores= may be a function that calls it
                    return signal(scores, *pair)
            except Exception as error:  # of the user's module
                errors.append(error)
        if self._is_asked:
            dtypes_tried = " and ".join(str(pair[1].dtype) for pair in pairs)
            shapes = f"{dtypes_tried}, at most {NUM_AT_ONCE} at a time of {len(generated)}"
            first = f"; with the samples as they are: {errors[0]}" if is_cast else ""
            errors[-1].add_note(f"in scores=, which was called with samples of {shapes}{first}")
            raise errors[-1]
        self._scores = None
        reason = str(errors[0]).partition("\n")[0] or type(errors[0]).__name__  # torch's may be pages
        has_gradient = generated.is_floating_point() or generated.is_complex()
        helps = has_gradient and not isinstance(errors[0], OutOfMemoryError)
        remedy = ", give scores=" if helps else ""
        logger.warning("monitor: the discriminator's signal is not measured%s: %s", remedy, reason)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the past, for the checkpoint; actions have their own."""
        return {
            "detector": self.detector.state_dict(),
            "history": self.history.state_dict(),
            "modes": self._modes.state_dict(),
            "signal": self._signal.state_dict(),
            "coverage": self._saved if self.coverage is None else self.coverage.state_dict(),
            "answers": [vars(answer) for answer in self._answers],
            "sampled": self.sampled,
            "reading": None if self.reading is None else dict(vars(self.reading)),
            "size": self._size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a monitor's", state, self.state_dict()):
            detector = Detector(self.detector.thresholds)  # the user's own is changed only when all is well
            detector.load_state_dict(state["detector"])
            verdict, meter = detector.verdict(), state["coverage"]
            answers = (Answer(**state["answers"][0]), Answer(**state["answers"][1]))
            sampled = None if state["sampled"] is None else integer("sampled", state["sampled"])
            told, size = state["reading"], None if state["size"] is None else float(state["size"])
            reading = None if told is None else Reading(**{key: _on_cpu(value) for key, value in told.items()})
            if verdict is not None:
                whole = combined(verdict, *answers, verdict.states).unchanged()
                # As at a snapshot: where no samples are given, nothing is said of what another monitor has read.
                verdict = whole if self._samples is not None else _of_spectra_alone(verdict)
        history = History(self.history.limit)
        history.load_state_dict(state["history"])
        if history.layers and history.layers != self.layers:  # none before the first snapshot
            raise ValueError(
                f"the state is of the layers {', '.join(history.layers)}; these are {', '.join(self.layers)}"
            )
        for name in history.layers:
            saved, own = tuple(history.singular_values(name).shape[1:]), self._watched[name].spectrum_shape
            if saved != own:
                raise ValueError(
                    f"the state has singular values of shape {saved} of layer {shown(name)!r}, which has {own}"
                )
        modes, taught = ModeJudge(self._modes.thresholds), SignalJudge()
        modes.load_state_dict(state["modes"])
        taught.load_state_dict(state["signal"])
        if meter is not None:
            load = checked_state if self.coverage is None else self.coverage.load_state_dict
            load(meter)
        self.detector.load_state_dict(state["detector"])
        self.history.load_state_dict(state["history"])
        self.latest = {name: self.history.singular_values(name)[-1].double() for name in self.history.layers}
        self._modes, self._signal, self._saved = modes, taught, meter
        self._answers, self.sampled, self.reading, self._size = answers, sampled, reading, size
        self._newest = max(self.history.iterations, default=None)
        self.verdict = self._told = verdict


def _of_spectra_alone(verdict: Verdict) -> Verdict:
    """Return a verdict on the spectra, which says that modes were not measured where it says that nothing is wrong."""
    if verdict.state != "steady":
        return verdict
    return replace(verdict, message=f"{verdict.message}; modes not measured: give samples=")


def _warn_of_few(num_generated: int, num_real: int | None) -> None:
    """Say that "healthy" means little of so few samples; None where the meter was made of others."""
    if num_generated >= _FEW_GENERATED and (num_real is None or num_real >= _FEW_REAL):
        return
    real = "" if num_real is None else f" and {num_real} real"
    logger.warning(
        "monitor: of %d generated%s samples coverage sees large losses alone, so that healthy says little: give a "
        "thousand or more", num_generated, real,
    )  # fmt: skip


def _networks(module: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the default groups of a module's layers."""
    groups = default_groups(names)
    parent = next((name.rpartition(".")[0] for name in groups if name), "")
    container = dict(plainly_named_modules(unwrap(module))).get(parent)
    # The parts of a chain are no networks beside each other.
    return {"": tuple(names)} if isinstance(container, nn.Sequential) else groups


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _grouped(groups: Mapping[str, str | Iterable[str]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(groups, Mapping) or not all(isinstance(group, str) and group for group in groups):
        raise ValueError(f'groups must map names to layers, as {{"D": "netD", "G": "netG"}}, got {groups!r:.60}')
    members: dict[str, tuple[str, ...]] = {}
    for group, selection in groups.items():
        is_single = isinstance(selection, str) or not isinstance(selection, Iterable)
        patterns: list[Any] = [selection] if is_single else list(selection)
        if not patterns:
            raise ValueError(f"group {group!r} is empty: name its layers, or leave it out")
        taken: set[str] = set()
        for pattern in patterns:
            if not isinstance(pattern, str) or not (layers := named(pattern, names)):
                near = suggestion(str(pattern), names)
                raise ValueError(
                    f"group {group!r}: {pattern!r} names no layer{near}; the layers are {', '.join(map(shown, names))}"
                )
            taken |= layers
        members[group] = tuple(name for name in names if name in taken)
    return checked_groups(members, names)

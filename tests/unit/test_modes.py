"""The judge of coverage: what it says of streams of readings."""

import copy
import io
import random
from itertools import groupby

import numpy as np
import pytest
import torch

from meters import reading
from specreg.monitor.modes import ModeJudge, ModeThresholds
from specreg.names import ALARMS

EVERY = 500
# Not the defaults, which may change with what is learnt of real trainings.
LIMITS = ModeThresholds(smoothing=3, losing=0.15, lost=0.25, learnt=0.6)


def judged(missing, error=0.02, judge=None, begin=0):
    judge = judge or ModeJudge(LIMITS)
    steps = [begin + EVERY * i for i in range(len(missing))]
    # The first samples of a training are noise.
    readings = [reading(share, error, far=0.0 if step else 0.9) for step, share in zip(steps, missing, strict=True)]
    return list(map(judge.update, steps, readings))


def states(answers):
    return [state for state, _ in groupby(answer.state for answer in answers)]


def test_a_late_drop_is_said_with_its_beginning_and_both_levels():
    answers = judged([0.05] * 20 + [0.6] * 3)
    assert states(answers) == ["not judged", "healthy", "lost"]
    assert [answer.state for answer in answers].index("lost") == 21  # one bad reading is none
    # The last good reading is the 20th: what is kept from later has lost the modes already.
    assert answers[-1].since == 19 * EVERY
    assert answers[-1].message == ("lost modes since iteration 9500: at least 60% of the data missing, 5% at best")


@pytest.mark.parametrize("place", [2, 3, 4, 9])
def test_one_wild_reading_is_no_alarm_wherever_it_comes(place):
    missing = [0.05] * 20
    missing[place] = 0.9  # the first one that is judged is at 1
    assert states(judged(missing)) == ["not judged", "healthy"]


def test_a_loss_among_the_first_readings_is_said_by_the_third():
    answers = judged([0.05] * 2 + [0.6] * 10)
    assert [answer.state for answer in answers].index("lost") == 3


def test_readings_of_few_samples_that_one_generator_explains_are_no_loss():
    missing = [0.18] * 4 + [0.42] * 2  # the intervals of all hold 0.3
    assert states(judged(missing, error=0.13, judge=ModeJudge())) == ["not judged", "healthy"]
    assert states(judged(missing, error=0.02, judge=ModeJudge())) == ["not judged", "healthy", "losing"]


def test_what_comes_back_of_data_that_were_never_learnt_is_not_called_recovered():
    answers = judged([0.9] + [0.7] * 8 + [0.8] * 3 + [0.7] * 5, judge=ModeJudge())
    assert states(answers) == ["not judged", "never learnt", "losing", "never learnt"]


def test_a_slow_drop_is_losing_before_it_is_lost():
    answers = judged([0.05] * 10 + [0.05 + 0.01 * i for i in range(40)])
    assert states(answers) == ["not judged", "healthy", "losing", "lost"]
    begin = {answer.state: answer for answer in reversed(answers)}
    assert begin["losing"].since == begin["lost"].since
    assert 9 * EVERY <= begin["lost"].since <= 12 * EVERY  # as soon as the readings are worse than their error


def test_a_small_part_that_is_lost_is_losing_and_stays_so():
    assert states(judged([0.05] * 10 + [0.22] * 40)) == ["not judged", "healthy", "losing"]


def test_what_was_learnt_once_is_not_called_never_learnt_after_a_recovery():
    answers = judged([0.3] * 10 + [0.9] * 10 + [0.5] * 10, judge=ModeJudge())
    assert states(answers) == ["not judged", "healthy", "lost", "recovered"]
    near = judged([0.38] * 4 + [0.34] * 3 + [0.38] * 10, judge=ModeJudge())  # 0.65 has to be produced once
    assert states(near) == ["not judged", "healthy"]


def test_what_comes_back_is_recovered_and_may_be_lost_again():
    answers = judged([0.05] * 10 + [0.6] * 10 + [0.1] * 10 + [0.7] * 10)
    assert states(answers) == ["not judged", "healthy", "lost", "recovered", "lost"]
    recovered = next(answer for answer in answers if answer.state == "recovered")
    assert recovered.since == 21 * EVERY
    assert answers[-1].since == 29 * EVERY
    assert "coverage recovered at iteration 10500: at least 10% of the data missing" in recovered.message
    # Less than 0.6 of the loss, and more, but of a loss so large that the rest is one.
    assert states(judged([0.05] * 10 + [0.6] * 10 + [0.35] * 10))[-1] == "lost"
    assert states(judged([0.05] * 10 + [0.95] * 10 + [0.4] * 10))[-1] == "lost"
    # Of all that was lost, and of this loss alone.
    assert states(judged([0.05] * 10 + [0.3] * 5 + [0.95] * 5 + [0.25] * 10))[-1] == "recovered"
    assert states(judged([0.05] * 10 + [0.95] * 5 + [0.05] * 10 + [0.4] * 10 + [0.28] * 10))[-1] == "lost"


def test_what_was_missing_from_the_beginning_was_never_learnt():
    answers = judged([0.9] * 15 + [0.2] * 5)
    assert states(answers) == ["not judged", "never learnt", "healthy"]
    assert {answer.since for answer in answers} == {None}
    assert [answer.state for answer in answers].index("never learnt") == 5  # a warm-up, progress, patience
    # Of next to nothing no loss is said.
    assert states(judged([0.88] * 5 + [0.97] * 10)) == ["not judged", "never learnt"]


def test_more_frequent_readings_are_judged_after_as_many_iterations():
    judge = ModeJudge()
    answers = {step: judge.update(step, reading(0.9)).state for step in range(0, 2001, 50)}
    assert next(step for step, state in answers.items() if state == "never learnt") == 1500  # warm-up and patience


def test_slow_progress_is_progress():
    answers = judged([max(0.1, 0.9 - 0.02 * i) for i in range(60)])
    assert states(answers) == ["not judged", "healthy"]
    assert states(judged([0.9 - 0.002 * i for i in range(20)])) == ["not judged", "never learnt"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("level", "error"), [(0.02, 0.04), (0.3, 0.04), (0.3, 0.02), (0.35, 0.01)])
def test_noise_within_its_error_gives_no_alarm(level, error, seed):
    noise = random.Random(seed)
    missing = [min(1.0, max(0.0, level + noise.gauss(0, error / 2))) for _ in range(200)]
    assert states(judged(missing, error)) == ["not judged", "healthy"]


def test_a_fall_within_the_readings_error_is_none():
    assert states(judged([0.3] * 10 + [0.45] * 20, error=0.2)) == ["not judged", "healthy"]
    assert states(judged([0.3] * 10 + [0.45] * 20, error=0.02))[-1] == "losing"


@pytest.mark.parametrize("missing", [[1 - 0.1 * i for i in range(10)], [0.3, 0.2, 0.25, 0.95, 0.8, 0.6, 0.4, 0.3]])
def test_early_training_is_no_loss(missing):
    judge = ModeJudge(LIMITS)
    # Noise around the data covers much of it, and lies far from it, before the generator has learnt anything.
    early = [judge.update(100 * i, reading(share, far=0.9)) for i, share in enumerate(missing[:5])]
    later = judged([*missing[5:], *[0.1] * 10], judge=judge, begin=EVERY)
    assert states(early + later) == ["not judged", "healthy"]


def test_a_collapse_in_the_warm_up_is_a_loss_once_the_samples_were_good():
    judge = ModeJudge()
    missing = [0.9, 0.4, 0.12, 0.12, *[0.93] * 10]
    answers = [judge.update(100 * i, reading(share, far=0.1)) for i, share in enumerate(missing)]
    assert states(answers) == ["not judged", "healthy", "lost"]
    assert [answer.state for answer in answers].index("lost") == 5
    assert answers[-1].message == "lost modes since iteration 300: at least 93% of the data missing, 12% at best"


@pytest.mark.parametrize("cut", [1, 4, 11, 13, 22, 25, 35])
def test_a_resumed_judge_goes_on_exactly(cut):
    missing = [0.9, 0.6, 0.3, 0.1, *[0.05] * 8, *[0.5 + 0.01 * i for i in range(10)], *[0.1] * 6, *[0.6] * 12]
    whole, first, second = (ModeJudge(LIMITS) for _ in range(3))
    expected = judged(missing, judge=whole)
    file = io.BytesIO()
    assert judged(missing[:cut], judge=first) == expected[:cut]
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert judged(missing[cut:], judge=second, begin=cut * EVERY) == expected[cut:]
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("best"),
        lambda state: state.update(more=1),
        lambda state: state.update(state="well"),
        lambda state: state.update(state="steady"),  # of the spectra
        lambda state: state.update(since="9500"),
        lambda state: state.update(recent=[[1.5, 0.1]]),
        lambda state: state.update(waiting=None),
        lambda state: state.update(low=None),
    ],
)
def test_a_state_that_is_none_is_refused_whole(spoil):
    judge, other = ModeJudge(LIMITS), ModeJudge(LIMITS)
    judged([0.05] * 5, judge=judge)
    judged([0.05] * 10 + [0.6] * 5, judge=other)
    before, state = judge.state_dict(), copy.deepcopy(other.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match="not a mode judge's state"):
        judge.load_state_dict(state)
    assert judge.state_dict() == before


def test_the_states_of_a_loss_are_alarms_and_the_others_none():
    said = {answer.state for answer in judged([0.05] * 10 + [0.2, 0.25, 0.3] + [0.6] * 5 + [0.05] * 10)}
    assert said & set(ALARMS) == {"losing", "lost"}
    assert said - set(ALARMS) == {"not judged", "healthy", "recovered"}


def test_thresholds_of_another_library_become_integers():
    thresholds = ModeThresholds(warmup=np.int64(0), smoothing=np.int64(2))
    assert [type(value) for value in (thresholds.warmup, thresholds.smoothing)] == [int, int]
    assert ModeJudge(thresholds).thresholds is thresholds

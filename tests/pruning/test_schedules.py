"""Sparsity schedules."""

import keras
import numpy as np
import pytest

from keras_compress import pruning
from keras_compress.pruning import schedules

SCHEDULES = [
    pruning.ConstantSparsity(0.5, 10, 90, 20),
    pruning.PolynomialDecay(0.1, 0.9, 10, 95, power=2, frequency=20),
    pruning.CosineDecay(0.1, 0.9, 10, 95, frequency=20),
    pruning.OneShot(0.7, 30),
]


def test_zhu_gupta_cubic():
    begin, count, every = 40, 7, 30
    schedule = pruning.PolynomialDecay(0.1, 0.85, begin, begin + count * every, frequency=every)
    got = [schedule(begin + i * every) for i in range(count + 1)]
    want = [0.85 + (0.1 - 0.85) * (1 - i / count) ** 3 for i in range(count + 1)]
    assert all(due for due, _ in got)
    np.testing.assert_allclose([sparsity for _, sparsity in got], want, rtol=1e-12)


def test_cosine_is_half_a_wave():
    schedule = pruning.CosineDecay(0.2, 0.8, 0, 100)
    got = [schedule.sparsity_at(step) for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(got, 0.5 - 0.3 * np.cos(np.pi * np.arange(5) / 4))


def test_due_steps_begin_turn_and_end():
    due = [[s for s in range(200) if schedule(s)[0]] for schedule in SCHEDULES]
    assert due[0] == [10, 30, 50, 70, 90]
    # The end is due off the turn too, so that the final sparsity is always reached.
    assert due[1] == due[2] == [10, 30, 50, 70, 90, 95]
    assert due[3] == [30]
    endless = pruning.ConstantSparsity(0.5, begin_step=3, frequency=50)
    assert [s for s in range(200) if endless(s)[0]] == [3, 53, 103, 153]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_ramps_stay_within_their_ends_and_serialise(schedule):
    values = [schedule.sparsity_at(step) for step in range(200)]
    assert values == sorted(values) and values[-1] == pytest.approx(schedule.final_sparsity)
    again = schedules.get(keras.saving.serialize_keras_object(schedule))
    assert type(again) is type(schedule) and again.get_config() == schedule.get_config()
    assert schedules.fingerprint(again) == schedules.fingerprint(schedule)
    assert len({schedules.fingerprint(s) for s in SCHEDULES}) == len(SCHEDULES)


class LikeTfmot:
    """Has the attributes and the call of a tfmot PolynomialDecay."""

    def __init__(self):
        self.begin_step, self.end_step, self.frequency, self.final_sparsity = 2, 8, 3, 0.5
        self.calls = []

    def __call__(self, step):
        self.calls.append(step)
        due = self.begin_step <= step <= self.end_step and (step - self.begin_step) % 3 == 0
        return np.bool_(due), np.float32(0.5)

    def get_config(self):
        return {"class_name": "LikeTfmot", "config": {"begin_step": 2}}


def test_tfmot_schedules_are_taken_and_asked_only_when_due():
    foreign = LikeTfmot()
    schedule = schedules.get(foreign)
    foreign.calls.clear()
    assert [s for s in range(12) if schedule(s)[0]] == [2, 5, 8] == foreign.calls
    assert schedule.final_sparsity == 0.5
    assert schedules.fingerprint(schedule) == schedules.fingerprint(schedules.get(LikeTfmot()))


def test_plain_function_is_a_schedule():
    schedule = schedules.get(lambda step: (step % 4 == 1, 0.25))
    assert [schedule(s)[0] for s in range(6)] == [False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pruning.OneShot(1.0), r"target_sparsity.*\[0, 1\)"),
        (lambda: pruning.OneShot(0.5, -3), "begin_step"),
        (lambda: pruning.PolynomialDecay(0.5, 0.2, 0, 10), "only grow"),
        (lambda: pruning.PolynomialDecay(0, 0.5, 10, 10), "end_step"),
        (lambda: pruning.PolynomialDecay(0, 0.5, 0, -1), "end_step"),
        (lambda: pruning.PolynomialDecay(0, 0.5, 0, 10, power=0), "power"),
        (lambda: pruning.ConstantSparsity(0.5, 5, 2), "end_step"),
        (lambda: pruning.ConstantSparsity(0.5, frequency=0), "frequency"),
        (lambda: schedules.get(0.5), "PolynomialDecay"),
        (lambda: schedules.get(pruning.OneShot), "schedule"),
        (lambda: schedules.get(lambda step: 0.5), "should_prune, sparsity"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

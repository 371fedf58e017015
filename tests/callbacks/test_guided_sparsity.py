"""GuidedSparsity prunes the layers for which the cost model says so, and no other."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
# A call costs as much as 25,000 dense multiply-accumulates.
MACHINE = kc.sparse.Machine(1e9, 5e8, 1e-9, 1e11, 2.5e-5)
SCHEDULE = kc.pruning.PolynomialDecay(0.0, 0.9, begin_step=0, end_step=4, frequency=1)


def make_model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, name="large"),
            keras.layers.Dense(2, name="small"),
        ]
    )
    model.compile("adam", "mse")
    return model


def zeros(layer):
    return float((keras.ops.convert_to_numpy(layer.kernel) == 0).mean())


def test_refused_layers_stay_dense_and_the_others_reach_the_schedule_s_sparsity():
    model = make_model()
    pruning = kc.callbacks.GuidedSparsity(model, SCHEDULE, machine=MACHINE)
    assert pruning.refused == ["small"] and list(pruning.costs) == ["conv", "large", "small"]
    for name, cost in pruning.costs.items():
        direct = kc.sparse.cost_model(model.get_layer(name), 0.9, machine=MACHINE)
        assert cost == direct and cost.pays == (name != "small")
    x, y = RNG.normal(size=(32, 8, 8, 4)), RNG.normal(size=(32, 2))
    history = model.fit(x, y, batch_size=8, epochs=2, callbacks=[pruning], verbose=0)
    assert history.history["sparsity"][-1] == pytest.approx(0.9, abs=0.01)
    assert zeros(model.get_layer("conv")) == pytest.approx(0.9, abs=0.01)
    assert zeros(model.get_layer("large")) == pytest.approx(0.9, abs=0.01)
    small = model.get_layer("small")
    assert zeros(small) == 0 and small.kernel_constraint is None
    assert isinstance(pruning, kc.callbacks.MagnitudePruning)
    rows = str(pruning.table()).splitlines()[2:]
    assert [row.split()[-1] for row in rows] == ["pruned", "pruned", "dense"]


def test_min_speedup_and_layers_narrow_the_choice():
    model = make_model()
    speedups = {
        name: cost.speedup
        for name, cost in kc.callbacks.GuidedSparsity(
            model, SCHEDULE, machine=MACHINE
        ).costs.items()
    }
    best = max(speedups, key=speedups.get)
    least = sorted(speedups.values())[-2]
    one = kc.callbacks.GuidedSparsity(model, SCHEDULE, min_speedup=least, machine=MACHINE)
    assert [layer.name for layer in one.layers] == [best]
    one = kc.callbacks.GuidedSparsity(model, SCHEDULE, layers="large", machine=MACHINE)
    assert list(one.costs) == ["large"]


def test_schedules_and_models_for_which_nothing_can_be_said_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="the sparsity at which the schedule ends"):
        kc.callbacks.GuidedSparsity(model, lambda step: (True, 0.5), machine=MACHINE)
    slow = kc.sparse.Machine(1e15, 1.0, 1.0, 1e12)
    with pytest.raises(ValueError, match="no layer would be more than 1 times faster"):
        kc.callbacks.GuidedSparsity(model, SCHEDULE, machine=slow)

"""DarkRank against brute force over all orders."""

import itertools

import keras
import numpy as np
import pytest
from scipy.stats import ortho_group

import keras_compress as kc
from tests.gradients import gradient

RNG = np.random.default_rng(2)
DarkRank = kc.distillation.DarkRank


def embeddings(count, width=3):
    return RNG.normal(size=(count, width)).astype("float32")


def scores(rows, alpha, beta):
    rows = rows.astype("float64")
    return -alpha * np.linalg.norm(rows[1:] - rows[0], axis=1) ** beta


def plackett_luce(order, s):
    """Draws one candidate after the other, without replacement."""
    left, probability = list(range(len(s))), 1.0
    for chosen in order:
        probability *= np.exp(s[chosen]) / np.exp(s[left]).sum()
        left.remove(chosen)
    return probability


@pytest.mark.parametrize(("alpha", "beta"), [(3.0, 3.0), (0.7, 1.0)])
def test_dark_rank_equals_brute_force(alpha, beta):
    teacher, student = embeddings(5), embeddings(5, 6) / 2
    s_t, s_s = scores(teacher, alpha, beta), scores(student, alpha, beta)
    orders = list(itertools.permutations(range(4)))
    p_t, p_s = (np.array([plackett_luce(o, s) for o in orders]) for s in (s_t, s_s))
    assert p_s.sum() == pytest.approx(1)
    hard = DarkRank(mode="hard", alpha=alpha, beta=beta).compute_loss(teacher, student)
    want = -np.log(plackett_luce(np.argsort(-s_t), s_s))
    assert float(hard) == pytest.approx(want, rel=1e-4)
    soft = DarkRank(mode="soft", alpha=alpha, beta=beta).compute_loss(teacher, student)
    assert float(soft) == pytest.approx(np.sum(p_t * np.log(p_t / p_s)), rel=1e-3)


def test_dark_rank_likelihoods_of_all_orders_sum_to_1():
    """A teacher for each order of 4 candidates, on a line."""
    student, total = embeddings(5), 0.0
    for order in itertools.permutations([1.0, 2.0, 3.0, 4.0]):
        teacher = np.array([[0.0], *([v] for v in order)], "float32")
        total += np.exp(-float(DarkRank(alpha=0.5, beta=2.0).compute_loss(teacher, student)))
    assert total == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_dark_rank_does_not_see_rotations(mode):
    teacher, student = embeddings(5, 4), embeddings(5, 4)
    loss = DarkRank(mode=mode, alpha=0.5)
    turn = ortho_group.rvs(4, random_state=0).astype("float32")
    want = float(loss.compute_loss(teacher, student))
    assert float(loss.compute_loss(teacher @ turn, student)) == pytest.approx(want, rel=1e-4)
    assert float(loss.compute_loss(teacher, student @ turn + 1)) == pytest.approx(want, rel=1e-3)


def test_dark_rank_falls_as_orders_agree_and_gaps_grow():
    line = np.array([[0.0], [1.0], [2.0], [3.0]], "float32")
    loss = DarkRank(alpha=1.0, beta=1.0)
    by_order = {
        order: float(loss.compute_loss(line, line[[0, *order]]))
        for order in itertools.permutations([1, 2, 3])
    }
    assert min(by_order, key=by_order.get) == (1, 2, 3)
    values = [float(loss.compute_loss(line, gap * line)) for gap in (0.5, 1, 2, 5, 20)]
    assert values == sorted(values, reverse=True) and values[-1] < 1e-6
    soft = DarkRank(mode="soft", alpha=1.0, beta=1.0)
    assert float(soft.compute_loss(line, line)) == pytest.approx(0, abs=1e-6)
    assert float(soft.compute_loss(line, 2 * line)) > 0.01


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_dark_rank_groups_of_a_batch(mode):
    teacher, student = embeddings(14), embeddings(14)
    loss = DarkRank(mode=mode, alpha=0.5, candidates=3)
    parts = [
        float(DarkRank(mode=mode, alpha=0.5).compute_loss(teacher[i : i + 4], student[i : i + 4]))
        for i in (0, 4, 8)
    ]
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(np.mean(parts), rel=1e-4)
    assert float(loss.compute_loss(teacher[:3], student[:3])) == 0


def test_dark_rank_gradient_of_copies_of_the_query_is_finite():
    student = embeddings(4)
    student[2] = student[0]
    for beta in (0.5, 1.0, 3.0):
        loss = DarkRank(beta=beta)
        assert np.isfinite(
            gradient(lambda s, f=loss: f.compute_loss(embeddings(4), s), student)
        ).all()


def net(width, name):
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(width, name="e")], name=name)


@pytest.mark.parametrize(
    "loss",
    [DarkRank("e", "e", alpha=0.1), DarkRank(mode="soft", alpha=0.1, candidates=4)],
    ids=["hard", "soft"],
)
def test_dark_rank_trains_a_student_of_another_width(loss):
    """In the compiled step, where the batch has no fixed size; the last one is smaller."""
    distiller = kc.distillation.Distiller(net(6, "teacher"), net(2, "student"), loss, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(RNG.normal(size=(33, 5)), batch_size=10, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_dark_rank_runs_in_keras_distiller():
    teacher, student = net(4, "teacher"), net(4, "student")
    x = RNG.normal(size=(6, 5)).astype("float32")
    distiller = keras.distillation.Distiller(
        teacher, student, [DarkRank(alpha=0.3)], student_loss_weight=0.0
    )
    distiller.compile("sgd", "mse")
    got = float(distiller.compute_loss(x, np.zeros((6, 4))))
    s_t, s_s = (scores(m.predict(x, verbose=0), 0.3, 3) for m in (teacher, student))
    assert got == pytest.approx(-np.log(plackett_luce(np.argsort(-s_t), s_s)), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DarkRank(mode="firm"), "`mode`"),
        (lambda: DarkRank(alpha=0), "`alpha`"),
        (lambda: DarkRank(beta=-1), "`beta`"),
        (lambda: DarkRank(mode="soft", candidates=7), r"at most 6; got 7"),
        (lambda: DarkRank(mode="soft").compute_loss(*2 * [embeddings(8)]), r"at most 6; got 7"),
        (lambda: DarkRank().make_adapter((None, 4), (None, 3, 3, 4)), "embeddings must have"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_config_round_trip():
    loss = DarkRank("a", "b", "soft", 2.0, 1.5, candidates=4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is DarkRank and again.get_config() == loss.get_config()

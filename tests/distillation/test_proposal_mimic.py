"""ProposalMimic: pooled regions against cropping by hand."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.distillation.proposal_mimic import pool_regions
from tests.gradients import gradient

RNG = np.random.default_rng(4)
ProposalMimic = kc.distillation.ProposalMimic


@keras.saving.register_keras_serializable("tests")
def boxes_of(x, y):
    return y


def features(*shape):
    return RNG.normal(size=shape).astype("float32")


def pooled(maps, boxes, pool):
    return keras.ops.convert_to_numpy(pool_regions(maps, np.asarray(boxes, "float32"), pool))


def test_regions_on_the_grid_equal_cropping_by_hand():
    maps = features(2, 8, 6, 3)
    boxes = [[[2 / 8, 1 / 6, 5 / 8, 4 / 6], [0, 0, 3 / 8, 3 / 6]], [[5 / 8, 3 / 6, 1, 1]] * 2]
    got = pooled(maps, boxes, 3)
    want = [[maps[0, 2:5, 1:4], maps[0, 0:3, 0:3]], [maps[1, 5:8, 3:6]] * 2]
    np.testing.assert_allclose(got, want, atol=1e-5)
    # Several cells a bin: their mean.
    got = pooled(maps, [[[2 / 8, 0, 6 / 8, 4 / 6]]] * 2, 2)
    want = maps[:, 2:6, 0:4].reshape(2, 1, 2, 2, 2, 2, 3).mean((3, 5))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_regions_off_the_grid_equal_cropping_a_fine_image():
    """Each cell drawn as 10 x 10 pixels, and the pixels of a bin averaged."""
    maps = features(1, 5, 4, 2)
    fine = maps.repeat(10, 1).repeat(10, 2)
    top, left, bottom, right = 7, 13, 31, 37
    crop = fine[:, top:bottom, left:right].reshape(1, 1, 3, 8, 3, 8, 2).mean((3, 5))
    got = pooled(maps, [[[top / 50, left / 40, bottom / 50, right / 40]]], 3)
    np.testing.assert_allclose(got, crop, atol=1e-5)


def test_mimic_equals_numpy_and_is_normalised():
    """1 / (2 N) sum over regions of the mean square: neither bins nor channels nor N scale it."""
    teacher, student = features(2, 4, 4, 3), features(2, 4, 4, 3)
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 1]], [[0.5, 0, 1, 0.5]] * 2], "float32")
    u, v = pooled(teacher, boxes, 2), pooled(student, boxes, 2)
    want = sum(
        np.sum((u[i, j] - v[i, j]) ** 2) / (2 * 2 * 3) for i in range(2) for j in range(2)
    ) / (2 * 4)
    loss = ProposalMimic("t", "s", boxes_of, pool=2)
    value = float(loss.compute_loss(teacher, student, y=boxes))
    assert value == pytest.approx(want, rel=1e-4)
    wide = (np.tile(m, (1, 1, 1, 5)) for m in (teacher, student))
    assert float(loss.compute_loss(*wide, y=boxes)) == pytest.approx(value, rel=1e-4)
    twice = np.concatenate([boxes, boxes], 1)
    assert float(loss.compute_loss(teacher, student, y=twice)) == pytest.approx(value, rel=1e-4)
    for pool in (1, 3, 7):
        shifted = ProposalMimic("t", "s", boxes_of, pool=pool).compute_loss(
            teacher, teacher + 2, y=boxes
        )
        assert float(shifted) == pytest.approx(0.5 * 2**2, rel=1e-4)


def test_padding_boxes_do_not_count():
    teacher, student = features(1, 4, 4, 3), features(1, 4, 4, 3)
    loss = ProposalMimic("t", "s", boxes_of, pool=2)
    boxes = np.array([[[0, 0, 0.5, 0.5]]], "float32")
    want = float(loss.compute_loss(teacher, student, y=boxes))
    empty = np.array([[[0, 0, 0, 0], [0.5, 0.7, 0.5, 0.9], [0.6, 0.6, 0.4, 0.8]]], "float32")
    padded = np.concatenate([boxes, empty], 1)
    assert float(loss.compute_loss(teacher, student, y=padded)) == pytest.approx(want, rel=1e-5)
    assert float(loss.compute_loss(teacher, student, y=empty)) == 0
    slope = gradient(lambda s: loss.compute_loss(teacher, s, y=empty), student)
    assert (slope == 0).all()


def test_features_outside_of_all_boxes_get_no_gradient():
    teacher, student = features(1, 8, 8, 2), features(1, 8, 8, 2)
    loss = ProposalMimic("t", "s", boxes_of, pool=3)
    boxes = np.array([[[1 / 8, 2 / 8, 4 / 8, 7 / 8], [0.55, 0.1, 0.9, 0.3]]], "float32")
    slope = gradient(lambda s: loss.compute_loss(teacher, s, y=boxes), student)
    inside = np.zeros((8, 8), bool)
    inside[1:4, 2:7] = inside[4:8, 0:3] = True
    assert (slope[0, ~inside] == 0).all() and (slope[0, inside] != 0).all()
    outside = student.copy()
    outside[0, ~inside] = 1000
    same = (float(loss.compute_loss(teacher, s, y=boxes)) for s in (student, outside))
    assert len({round(value, 4) for value in same}) == 1


def test_maps_of_different_strides_meet_in_normalised_boxes():
    """The same content at half the stride: the loss is 0 for any boxes."""
    student = features(2, 4, 5, 3)
    teacher = student.repeat(2, 1).repeat(2, 2)
    corner, side = RNG.uniform(0, 0.6, (2, 6, 2)), RNG.uniform(0.1, 0.4, (2, 6, 2))
    boxes = np.concatenate([corner, corner + side], -1).astype("float32")
    loss = ProposalMimic("t", "s", boxes_of, pool=4)
    assert float(loss.compute_loss(teacher, student, y=boxes)) == pytest.approx(0, abs=1e-9)


def net(filters, strides, name):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(filters, 3, strides, padding="same", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, name="logits"),
        ],
        name=name,
    )


def test_mimic_trains_through_the_regressor():
    x = features(12, 8, 8, 1)
    boxes = np.tile(np.array([[0.0, 0.0, 0.5, 1.0], [0.2, 0.3, 0.9, 0.8]], "float32"), (12, 1, 1))
    teacher, student = net(6, 1, "teacher"), net(2, 2, "student")
    before = student.get_layer("logits").get_weights()
    loss = ProposalMimic("conv", "conv", boxes_of, pool=2)
    distiller = kc.distillation.Distiller(teacher, student, loss, alpha=1.0)
    (adapter,) = distiller.adapters
    assert isinstance(adapter, keras.layers.Dense) and adapter.units == 6
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(x, boxes, batch_size=6, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for a, b in zip(before, student.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    taps = [keras.Model(m.inputs[0], m.get_layer("conv").output) for m in (teacher, student)]
    maps = taps[0](x), adapter(taps[1](x))
    want = float(loss.compute_loss(*maps, y=boxes))
    got = distiller.evaluate(x, boxes, batch_size=12, verbose=0, return_dict=True)["loss"]
    assert got == pytest.approx(want, rel=1e-3)


def test_no_regressor_where_the_channels_fit():
    loss = ProposalMimic("t", "s", boxes_of)
    assert loss.make_adapter((None, 8, 8, 3), (None, 4, 4, 3)) is None
    with pytest.raises(ValueError, match="equal shapes"):
        ProposalMimic("t", "s", boxes_of, adapter=None).make_adapter(
            (None, 8, 8, 3), (None, 4, 4, 2)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProposalMimic("t", "s"), "`boxes_fn` must be a function"),
        (lambda: ProposalMimic("t", "s", boxes_of, pool=0), "`pool`"),
        (
            lambda: ProposalMimic("t", "s", boxes_of).make_adapter((None, 3), (None, 3)),
            "regions need",
        ),
        (
            lambda: ProposalMimic("t", "s", boxes_of).compute_loss(*2 * [features(1, 2, 2, 3)]),
            "use kc.distillation.Distiller",
        ),
        (
            lambda: ProposalMimic("t", "s", boxes_of).compute_loss(
                *2 * [features(1, 2, 2, 3)], y=features(1, 4)
            ),
            r"boxes of shape .*got \(1, 4\)",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_config_round_trip():
    loss = ProposalMimic("a", "b", boxes_of, 3, adapter="regressor")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is ProposalMimic and again.get_config() == loss.get_config()
    assert again.boxes_fn is boxes_of

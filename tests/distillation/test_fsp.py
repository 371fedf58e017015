"""FSP: flow matrices against numpy, and the two stages."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.distillation.fsp import flow_matrix

RNG = np.random.default_rng(3)
FSP = kc.distillation.FSP


def features(*shape):
    return RNG.normal(size=shape).astype("float32")


def matrix(first, last):
    """`G[i, j]` as the mean over positions of one sample."""
    height, width = last.shape[:2]
    g = np.zeros((first.shape[-1], last.shape[-1]))
    for s in range(height):
        for t in range(width):
            g += np.outer(first[s, t], last[s, t])
    return g / (height * width)


def test_fsp_matrix_of_hand_made_features():
    first = np.zeros((1, 1, 2, 2), "float32")
    last = np.zeros((1, 1, 2, 1), "float32")
    first[0, 0], last[0, 0] = [[1, 2], [3, 4]], [[10], [100]]
    got = keras.ops.convert_to_numpy(flow_matrix(first, last))
    np.testing.assert_allclose(got, [[[(10 + 300) / 2], [(20 + 400) / 2]]])


def test_fsp_larger_map_is_max_pooled():
    first, last = features(2, 6, 4, 3), features(2, 3, 2, 5)
    pooled = first.reshape(2, 3, 2, 2, 2, 3).max((2, 4))
    want = np.stack([matrix(a, b) for a, b in zip(pooled, last, strict=True)])
    got = keras.ops.convert_to_numpy(flow_matrix(first, last))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    back = keras.ops.convert_to_numpy(flow_matrix(last, first))
    np.testing.assert_allclose(back, want.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)
    # Sizes that are no multiple: windows overlap, as in adaptive pooling: rows 0-2, 1-3, 3-4.
    column = np.arange(5, dtype="float32").reshape(1, 5, 1, 1)
    weights = np.array([1.0, 10.0, 100.0], "float32").reshape(1, 3, 1, 1)
    want = sum(w * column[0, a:b].max() for w, a, b in [(1, 0, 2), (10, 1, 4), (100, 3, 5)]) / 3
    got = float(keras.ops.squeeze(flow_matrix(column, weights)))
    assert got == pytest.approx(want, rel=1e-5)


def test_fsp_loss_is_the_squared_frobenius_distance():
    """Maps of teacher and student may have different sizes."""
    teacher = features(3, 4, 4, 2), features(3, 4, 4, 5)
    student = features(3, 2, 3, 2), features(3, 2, 3, 5)
    want = np.mean(
        [
            np.linalg.norm(matrix(a, b) - matrix(c, d)) ** 2
            for a, b, c, d in zip(*teacher, *student, strict=True)
        ]
    )
    loss = FSP(("a", "b"), ("a", "b"))
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(want, rel=1e-4)
    assert float(loss.compute_loss(teacher, teacher)) == 0


def test_fsp_matrices_must_have_equal_shapes():
    loss = FSP(("a", "b"), ("c", "d"))
    image = (None, 4, 4, 3)
    with pytest.raises(ValueError, match=r"got \(3, 3\) of teacher.*\(3, 2\) of student layers"):
        loss.check_shapes((image, image), (image, (None, 4, 4, 2)))
    with pytest.raises(ValueError, match="both layers of a block need"):
        loss.check_shapes((image, image), ((None, 3), (None, 3)))
    with pytest.raises(ValueError, match="of known sizes if pooled"):
        loss.check_shapes((image, (None, None, None, 3)), (image, image))
    loss.check_shapes((image, (None, 2, 2, 3)), (2 * [(None, None, None, 3)]))


def net(depth, name):
    """Stem, `depth` convolutions of one width with a stride at the end, and a classifier."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first"),
            *(keras.layers.Conv2D(4, 3, padding="same") for _ in range(depth)),
            keras.layers.Conv2D(5, 3, strides=2, padding="same", name="last"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, name="logits"),
        ],
        name=name,
    )


def test_fsp_stages():
    """First the flow alone, which leaves the layers after the block; then the task from there."""
    x, y = features(16, 8, 8, 1), RNG.integers(0, 2, 16)
    teacher, student = net(2, "teacher"), net(0, "student")
    loss = FSP(("first", "last"), ("first", "last"))
    distiller = kc.distillation.Distiller(
        teacher,
        student,
        stages=[kc.distillation.Stage(loss, epochs=3), kc.distillation.Stage(epochs=1)],
    )
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.01), crossentropy)

    def flow():
        names = ("first", "last")
        taps = [keras.Model(m.inputs[0], [m.get_layer(n).output for n in names])(x) for m in models]
        maps = [[keras.ops.convert_to_numpy(f) for f in tap] for tap in taps]
        maps = [(a.reshape(16, 4, 2, 4, 2, 4).max((2, 4)), b) for a, b in maps]
        gaps = [matrix(a, b) - matrix(c, d) for a, b, c, d in zip(*maps[0], *maps[1], strict=True)]
        return np.mean([np.linalg.norm(gap) ** 2 for gap in gaps])

    models = teacher, student
    weights, flows = [student.get_weights()], [flow()]

    def record(epoch, logs):
        weights.append(student.get_weights())
        flows.append(flow())

    callback = keras.callbacks.LambdaCallback(on_epoch_end=record)
    history = distiller.fit(x, y, batch_size=16, callbacks=[callback], verbose=0).history
    # The loss of an epoch of one batch is the one before its step.
    np.testing.assert_allclose(history["distillation_loss"][:3], flows[:3], rtol=1e-3)
    assert flows[3] < flows[0]
    for i, (start, switch, end) in enumerate(zip(weights[0], weights[3], weights[4], strict=True)):
        assert (start != switch).any() == (i < 4)
        assert (switch != end).any()


def test_fsp_of_equal_nets_is_zero():
    teacher, student = net(1, "teacher"), net(1, "student")
    student.set_weights(teacher.get_weights())
    loss = FSP(("first", "last"), ("first", "last"))
    distiller = kc.distillation.Distiller(teacher, student, loss, alpha=1.0)
    distiller.compile("sgd")
    assert float(distiller.compute_loss(features(4, 8, 8, 1))) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", ["a", None, ("a",), ("a", "b", "c")])
def test_fsp_needs_two_layers_of_each_side(name):
    with pytest.raises(ValueError, match="`teacher_layer_name` must be the names of two layers"):
        FSP(name, ("a", "b"))
    with pytest.raises(ValueError, match="`student_layer_name` must be the names of two layers"):
        FSP(("a", "b"), name)


def test_config_round_trip():
    loss = FSP(("a", "b"), ("c", "d"))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is FSP
    assert again.teacher_layer_name == ("a", "b") and again.student_layer_name == ("c", "d")

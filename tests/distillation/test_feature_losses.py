"""Hint (FitNets) and AttentionTransfer against numpy; adapters; names and globs."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.distillation.pairs import layer_pairs
from tests.gradients import gradient

RNG = np.random.default_rng(1)


def features(*shape):
    return RNG.normal(size=shape).astype("float32")


def test_fitnets_hint_is_half_the_squared_distance():
    teacher, student = features(3, 4, 4, 5), features(3, 4, 4, 5)
    hint = kc.distillation.Hint()
    want = np.mean([0.5 * np.linalg.norm(row) ** 2 for row in (teacher - student).reshape(3, -1)])
    np.testing.assert_allclose(float(hint.compute_loss(teacher, student)), want, rtol=1e-5)
    assert float(hint.compute_loss(teacher, teacher)) == 0
    got = gradient(lambda s: hint.compute_loss(teacher, s), student)
    np.testing.assert_allclose(got, (student - teacher) / 3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "student", "parameters"),
    [
        ((None, 8), (None, 5), 5 * 8 + 8),
        ((None, 6, 6, 8), (None, 6, 6, 3), 3 * 8 + 8),
        ((None, 6, 4, 8), (None, 8, 8, 3), 3 * 5 * 3 * 8 + 8),
        ((None, 7, 8), (None, 9, 3), 3 * 3 * 8 + 8),
    ],
)
def test_fitnets_regressor(teacher, student, parameters):
    """N_student - k + 1 = N_teacher."""
    adapter = kc.distillation.Hint(adapter="auto").make_adapter(teacher, student)
    assert tuple(adapter.compute_output_shape(student)) == teacher
    assert adapter.count_params() == parameters
    with pytest.raises(ValueError, match="equal shapes"):
        kc.distillation.Hint(adapter=None).make_adapter(teacher, student)


def test_adapter_choices():
    same = (None, 4, 4, 3)
    assert kc.distillation.Hint().make_adapter(same, same) is None
    assert kc.distillation.Hint(adapter="regressor").make_adapter(same, same).units == 3
    given = keras.layers.Conv2D(3, 1, name="mine")
    made = kc.distillation.Hint(adapter=given).make_adapter(same, (None, 4, 4, 7))
    assert made is not given and isinstance(made, keras.layers.Conv2D) and made.built
    with pytest.raises(ValueError, match="no regressor leads from"):
        kc.distillation.Hint("a", "b").make_adapter((None, 8, 8, 3), same)
    with pytest.raises(ValueError, match="no regressor leads from"):
        kc.distillation.Hint("a", "b").make_adapter((None, 8), same)


def test_adapters_by_name():
    image, small = (None, 4, 4, 3), (None, 2, 6, 5)

    def make(kind, *shapes):
        return kc.distillation.Hint("a", "b", kind).make_adapter(*shapes)

    student = features(2, 4, 4, 5)
    layer = make("conv1x1", image, (None, 4, 4, 5))
    kernel, bias = layer.get_weights()
    want = np.einsum("nhwc,cd->nhwd", student, kernel) + bias
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(student)), want, atol=1e-5)
    layer = make("dense", (None, 7, 2), (None, 4, 4, 5))
    kernel, bias = layer.get_weights()
    want = (student.reshape(2, -1) @ kernel + bias).reshape(2, 7, 2)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(student)), want, atol=1e-5)
    assert isinstance(make("dense", (None, 7), (None, 5)), keras.layers.Dense)
    # Halving an image bilinearly between pixel centres is the mean of 2 x 2 pixels.
    layer = make("resize", (None, 2, 2, 5), (None, 4, 4, 5))
    want = student.reshape(2, 2, 2, 2, 2, 5).mean((2, 4))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(student)), want, atol=1e-5)
    assert not layer.weights
    assert make("resize", image, small).count_params() == 5 * 3 + 3
    layer = make(lambda x: x[..., :3] + x[..., 2:], image, (None, 4, 4, 5))
    got = keras.ops.convert_to_numpy(layer(student))
    np.testing.assert_allclose(got, student[..., :3] + student[..., 2:])
    for kind, shapes, message in (
        ("conv1x1", (image, small), "maps must have the same size"),
        ("dense", (image, (None, None, 4, 3)), "sizes must be known"),
        ("resize", (image, (None, 4, 3)), "both must be images"),
        (lambda x: x, (image, small), "equal shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            make(kind, *shapes)


class TwoLayers(kc.distillation.Hint):
    """Half the squared distance of the sums of two layers' features."""

    def distance(self, teacher, student):
        return super().distance(sum(teacher), sum(student))


def test_several_layers_at_once():
    teacher, student = net([5, 5, 5, 3]), net([5, 5, 3], "part")
    loss = TwoLayers(("block0", "block2"), ("part0", "part1"))
    assert layer_pairs(loss, teacher, student) == [(("block0", "block2"), ("part0", "part1"))]
    x = features(4, 4)
    distiller = kc.distillation.Distiller(teacher, student, loss, alpha=1.0)
    assert distiller.adapters == []
    distiller.compile("sgd")
    got = distiller.evaluate(x, verbose=0, return_dict=True)["distillation_loss"]
    maps = []
    for model, names in ((teacher, ("block0", "block2")), (student, ("part0", "part1"))):
        outputs, h = {}, x
        for layer in model.layers:
            h = keras.ops.convert_to_numpy(layer(h))
            outputs[layer.name] = h
        maps.append(sum(outputs[name] for name in names))
    want = 0.5 * np.square(maps[0] - maps[1]).sum(1).mean()
    assert got == pytest.approx(want, rel=1e-5)
    narrow = net([2, 3, 3], "part")
    loss = TwoLayers(("block0", "block1"), ("part0", "part1"))
    made = kc.distillation.Distiller(teacher, narrow, loss, alpha=1.0).adapters
    assert [layer.kernel.shape for layer in made] == [(2, 5), (3, 5)]
    # Globs give a pair for each place.
    loss = TwoLayers(("block[01]", "block[12]"), ("part0", "part1"))
    with pytest.raises(ValueError, match="equally many layers"):
        layer_pairs(loss, teacher, student)
    loss = TwoLayers(("block[01]", "block[12]"), ("part[01]", "part[01]"))
    pairs = [(("block0", "block1"), ("part0", "part0")), (("block1", "block2"), ("part1", "part1"))]
    assert layer_pairs(loss, teacher, student) == pairs
    with pytest.raises(ValueError, match="matches.*all parts"):
        layer_pairs(TwoLayers(("block[01]", "block1"), ("part0", "part1")), teacher, student)
    with pytest.raises(ValueError, match="name equally many"):
        kc.distillation.Distiller(teacher, student, TwoLayers(("block0", "block1"), "part0"))


def attention(a, p):
    q = (np.abs(a.astype("float64")) ** p).sum(-1).reshape(len(a), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_attention_transfer_equals_numpy(p):
    teacher, student = features(3, 4, 5, 6), features(3, 4, 5, 2)
    loss = kc.distillation.AttentionTransfer(p=p)
    want = np.linalg.norm(attention(teacher, p) - attention(student, p), axis=1).mean()
    np.testing.assert_allclose(float(loss.compute_loss(teacher, student)), want, rtol=1e-4)
    # Scale, sign and number of channels do not matter.
    wide = np.concatenate([7 * student, -7 * student], -1)
    np.testing.assert_allclose(float(loss.compute_loss(teacher, wide)), want, rtol=1e-4)


def test_attention_transfer_of_identical_features_is_zero_with_gradient_zero():
    loss = kc.distillation.AttentionTransfer()
    same = features(2, 3, 3, 4)
    same[1] = 0
    assert float(loss.compute_loss(same, same)) == 0
    assert (gradient(lambda s: loss.compute_loss(same, s), same) == 0).all()
    dead = gradient(lambda s: loss.compute_loss(features(2, 3, 3, 4), s), np.zeros_like(same))
    assert np.isfinite(dead).all()


def test_attention_transfer_resizes_the_students_map():
    """Halving an image bilinearly between pixel centres is the mean of 2 x 2 pixels."""
    teacher, student = features(2, 3, 3, 4), features(2, 6, 6, 2)
    want_map = (student.astype("float64") ** 2).sum(-1).reshape(2, 3, 2, 3, 2).mean((2, 4))
    want_map = want_map.reshape(2, -1)
    want_map /= np.linalg.norm(want_map, axis=1, keepdims=True)
    want = np.linalg.norm(attention(teacher, 2) - want_map, axis=1).mean()
    loss = kc.distillation.AttentionTransfer()
    got = float(loss.compute_loss(teacher, keras.ops.convert_to_tensor(student)))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((None, 8), (None, 8)), ((None, 4, 4, 3), (None, 4, 3)), ((None, 4, 3), (None, 5, 3))],
)
def test_attention_transfer_needs_maps(teacher, student):
    with pytest.raises(ValueError, match="attention maps need features"):
        kc.distillation.AttentionTransfer().make_adapter(teacher, student)


def net(widths, prefix="block"):
    return keras.Sequential(
        [
            keras.Input((4,)),
            *(keras.layers.Dense(n, name=f"{prefix}{i}") for i, n in enumerate(widths)),
        ],
        name=prefix,
    )


def test_names_and_globs_pair_layers_in_order():
    teacher, student = net([5, 6, 7, 3]), net([2, 3, 3], "part")
    hint = kc.distillation.Hint
    assert layer_pairs(hint("block1", "part0"), teacher, student) == [("block1", "part0")]
    assert layer_pairs(hint("block[02]", "part[01]"), teacher, student) == [
        ("block0", "part0"),
        ("block2", "part1"),
    ]
    assert layer_pairs(hint(None, "part2"), teacher, student) == [(None, "part2")]
    assert layer_pairs(kc.distillation.LogitsDistillation(), teacher, student) == [(None, None)]


def test_names_that_do_not_fit():
    teacher, student = net([5, 6, 3]), net([2, 3], "part")
    hint = kc.distillation.Hint
    with pytest.raises(ValueError, match=r"teacher_layer_name='blok1'.*mean 'block\d'"):
        layer_pairs(hint("blok1", "part0"), teacher, student)
    with pytest.raises(ValueError, match=r"student_layer_name='prt0', model 'part'.*mean 'part0'"):
        layer_pairs(hint("block1", "prt0"), teacher, student)
    with pytest.raises(ValueError, match="equally many layers"):
        layer_pairs(hint("block*", "part*"), teacher, student)
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, teacher(inputs))
    with pytest.raises(ValueError, match="inside 'block': only that model's output"):
        layer_pairs(hint("block1", "part0"), outer, student)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="subclassed"):
        layer_pairs(hint("block1", "part0"), Subclassed(), student)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kc.distillation.Hint(3, "a"), "teacher_layer_name"),
        (lambda: kc.distillation.Hint("a", ["b"]), "student_layer_name"),
        (lambda: kc.distillation.Hint("a", "b", "conv"), "'regressor'"),
        (lambda: kc.distillation.AttentionTransfer("a", "b", p=0), "`p`"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "loss",
    [
        kc.distillation.Hint("a", "b*", "regressor"),
        kc.distillation.Hint("a", None, keras.layers.Dense(3)),
        kc.distillation.AttentionTransfer("a", "b", p=4),
    ],
    ids=["hint", "layer", "attention"],
)
def test_config_round_trip(loss):
    serialize, deserialize = (
        keras.saving.serialize_keras_object,
        keras.saving.deserialize_keras_object,
    )
    again = deserialize(serialize(loss))
    assert type(again) is type(loss)
    assert serialize(again)["config"] == serialize(loss)["config"]

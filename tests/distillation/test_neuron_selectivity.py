"""NST: maximum mean discrepancy of channels against numpy."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.gradients import gradient

RNG = np.random.default_rng(1)
KERNELS = ["linear", "poly", "gaussian"]
NeuronSelectivity = kc.distillation.NeuronSelectivity


def features(*shape):
    return RNG.normal(size=shape).astype("float32")


def patterns(sample):
    rows = sample.reshape(-1, sample.shape[-1]).T.astype("float64")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mmd(teacher, student, kernel):
    """Loops over pairs of channels, sample by sample."""
    total = []
    for t, s in zip(map(patterns, teacher), map(patterns, student), strict=True):
        spread = np.mean([np.sum((a - b) ** 2) for a in t for b in s])
        k = {
            "linear": lambda a, b: a @ b,
            "poly": lambda a, b: (a @ b) ** 2,
            "gaussian": lambda a, b, spread=spread: np.exp(-np.sum((a - b) ** 2) / (2 * spread)),
        }[kernel]
        means = [np.mean([k(a, b) for a in u for b in v]) for u, v in ((t, t), (s, s), (t, s))]
        total.append(means[0] + means[1] - 2 * means[2])
    return np.mean(total)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nst_equals_numpy_with_other_numbers_of_channels(kernel):
    teacher, student = features(3, 4, 3, 5), features(3, 4, 3, 2)
    got = float(NeuronSelectivity(kernel=kernel).compute_loss(teacher, student))
    np.testing.assert_allclose(got, mmd(teacher, student, kernel), rtol=1e-4)
    sequences = teacher.reshape(3, 12, 5), student.reshape(3, 12, 2)
    again = float(NeuronSelectivity(kernel=kernel).compute_loss(*sequences))
    np.testing.assert_allclose(again, got, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nst_is_zero_for_equal_and_permuted_channels_and_positive_else(kernel):
    loss = NeuronSelectivity(kernel=kernel)
    same = features(2, 3, 3, 6)
    for other in (same, same[..., RNG.permutation(6)], same * features(6) ** 2):
        assert float(loss.compute_loss(same, other)) == pytest.approx(0, abs=1e-6)
    for _ in range(5):
        assert float(loss.compute_loss(same, features(2, 3, 3, 4))) > 0


def test_nst_linear_kernel_is_the_squared_distance_of_means():
    teacher, student = features(3, 4, 4, 5), features(3, 4, 4, 7)
    gaps = [
        patterns(t).mean(0) - patterns(s).mean(0) for t, s in zip(teacher, student, strict=True)
    ]
    want = np.mean([g @ g for g in gaps])
    got = float(NeuronSelectivity(kernel="linear").compute_loss(teacher, student))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_nst_resizes_the_students_map():
    """Halving an image bilinearly between pixel centres is the mean of 2 x 2 pixels."""
    teacher, student = features(2, 3, 3, 4), features(2, 6, 6, 2)
    halved = student.reshape(2, 3, 2, 3, 2, 2).mean((2, 4))
    got = float(NeuronSelectivity().compute_loss(teacher, keras.ops.convert_to_tensor(student)))
    np.testing.assert_allclose(got, mmd(teacher, halved, "poly"), rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nst_gradient_against_differences_and_dead_channels(kernel):
    loss = NeuronSelectivity(kernel=kernel)
    teacher, student = features(1, 2, 2, 3), features(1, 2, 2, 2)
    if kernel != "gaussian":  # whose width is held while the gradient is taken
        slope, step = (
            gradient(lambda s: loss.compute_loss(teacher, s), student),
            features(1, 2, 2, 2),
        )
        rise = mmd(teacher, student + 1e-4 * step, kernel) - mmd(
            teacher, student - 1e-4 * step, kernel
        )
        np.testing.assert_allclose(np.sum(slope * step), rise / 2e-4, rtol=1e-2, atol=1e-5)
    student[..., 0] = 0
    assert np.isfinite(gradient(lambda s: loss.compute_loss(teacher, s), student)).all()


def net(filters, name):
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(filters, 3, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ],
        name=name,
    )


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_nst_runs_in_both_distillers():
    x = features(8, 6, 6, 1)
    teacher, student = net(5, "teacher"), net(3, "student")
    maps = [keras.Model(m.inputs[0], m.get_layer("conv").output)(x) for m in (teacher, student)]
    want = mmd(*map(keras.ops.convert_to_numpy, maps), "poly")
    for cls in (keras.distillation.Distiller, kc.distillation.Distiller):
        distiller = cls(
            teacher, student, [NeuronSelectivity("conv", "conv")], student_loss_weight=0.0
        )
        distiller.compile("sgd", "mse")
        assert float(distiller.compute_loss(x, np.zeros((8, 2)))) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((None, 8), (None, 8)), ((None, 4, 4, 3), (None, 4, 3)), ((None, 4, 3), (None, 5, 3))],
)
def test_nst_needs_maps(teacher, student):
    with pytest.raises(ValueError, match="activation patterns need features"):
        NeuronSelectivity().make_adapter(teacher, student)


def test_bad_kernel_and_config_round_trip():
    with pytest.raises(ValueError, match=r"`kernel` must be one of.*'gauss'.*'gaussian'"):
        NeuronSelectivity(kernel="gauss")
    loss = NeuronSelectivity("a*", "b*", "linear")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is NeuronSelectivity and again.get_config() == loss.get_config()

"""Moonshine: cheap blocks in the teacher's architecture, attention pairs, export."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 16, 16, 3)).astype("float32")
Y = RNG.integers(0, 4, 8)
BLOCKS = ["G(4)", "B(2)", "BG(2,4)", "S"]


def resnet():
    def convolution(x, filters, name, size=3, strides=1):
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    x = inputs = keras.Input((16, 16, 3))
    x = convolution(layers.Rescaling(0.5)(x), 16, "stem")
    for stage, filters in enumerate((16, 32)):
        y = layers.ReLU()(convolution(x, filters, f"a{stage}", strides=1 + stage))
        y = convolution(y, filters, f"b{stage}")
        x = convolution(x, filters, f"short{stage}", 1, 1 + stage)
        x = layers.ReLU(name=f"end{stage}")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


def vgg(classes=4):
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="c1"),
            layers.Conv2D(16, 3, activation="relu", name="c2"),
            layers.MaxPooling2D(name="p"),
            layers.Conv2D(24, (5, 3), padding="same", activation="relu", name="c3"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ]
    )


@pytest.fixture(scope="module", params=[resnet, vgg])
def teacher(request):
    return request.param()


def kernels(layer):
    return [w for w in layer.weights if w.name == "kernel"]


@pytest.mark.parametrize("block", BLOCKS)
def test_moonshine_output_shapes_are_equal_layer_by_layer_and_the_rest_is_copied(teacher, block):
    # After the first block, the teacher is frozen already.
    student = kc.distillation.moonshine(teacher, block).student
    assert all(layer.trainable for layer in student.layers)
    names = [layer.name for layer in student.layers]
    replaced = {n for layer in teacher.layers for n in [layer.name] if f"{n}_spatial" in names}
    replaced |= {n for layer in teacher.layers for n in [layer.name] if f"{n}_depthwise" in names}
    large = [
        layer.name
        for layer in teacher.layers
        if isinstance(layer, layers.Conv2D) and layer.kernel_size != (1, 1)
    ]
    assert replaced == set(large[1:])
    for old in teacher.layers:
        new = student.get_layer(old.name)
        assert type(new) is type(old) and new is not old
        assert new.output.shape == old.output.shape
        if old.name in replaced:
            assert new.kernel_size == (1, 1) and new.activation == old.activation
        else:
            for before, after in zip(old.weights, new.weights, strict=True):
                np.testing.assert_array_equal(after, before)


def test_moonshine_weights_of_a_block_are_the_formulas():
    """Of c channels and a k x k kernel; batch normalizations aside."""
    k, c = 3, 16
    formulas = {
        "G(4)": k**2 * c**2 / 4 + c**2,
        "B(2)": 2 * c**2 / 2 + k**2 * c**2 / 4,
        "BG(2,4)": 2 * c**2 / 2 + k**2 * c**2 / (4 * 4),
        "S": k**2 * c + c**2,
    }
    teacher = resnet()
    for block, weights in formulas.items():
        student = kc.distillation.moonshine(teacher, block).student
        parts = [layer for layer in student.layers if layer.name.split("_")[0] == "b0"]
        found = [v for part in parts for v in part.weights if "kernel" in v.name]
        assert sum(int(np.prod(v.shape)) for v in found) == weights, block


def test_moonshine_grouped_block_is_the_formula_of_the_layers():
    """Groups see only their channels; norm, relu, then every channel is mixed."""
    student = kc.distillation.moonshine(vgg(), "G(4)").student
    get = student.get_layer
    x = RNG.normal(size=(2, 7, 7, 16)).astype("float32")
    kernel = ops.convert_to_numpy(get("c3_spatial").kernel)
    assert kernel.shape == (5, 3, 4, 16)
    parts = [
        keras.ops.conv(x[..., 4 * g : 4 * g + 4], kernel[..., 4 * g : 4 * g + 4], padding="same")
        for g in range(4)
    ]
    parts = np.concatenate([ops.convert_to_numpy(part) for part in parts], -1)
    hidden = np.maximum(parts / np.sqrt(1 + get("c3_spatial_norm").epsilon), 0)
    expected = np.maximum(hidden @ ops.convert_to_numpy(get("c3").kernel)[0, 0], 0)
    start = [layer.name for layer in student.layers].index("c3_spatial")
    for layer in student.layers[start : start + 4]:
        x = layer(x)
    np.testing.assert_allclose(x, expected, atol=1e-4)


def test_moonshine_attention_pairs_are_the_ends_of_the_resolutions():
    distiller = kc.distillation.moonshine(resnet(), "G(4)", beta=100.0)
    pairs = [(a.teacher_layer_name, a.student_layer_name) for a in distiller.distillation_losses]
    assert pairs == [("end0", "end0"), ("end1", "end1")]
    assert distiller.distillation_loss_weights == [50 / 256, 50 / 64]
    distiller = kc.distillation.moonshine(vgg(), "S")
    assert [a.teacher_layer_name for a in distiller.distillation_losses] == ["c2", "c3"]
    # What lies before the first block is the same on both sides.
    distiller = kc.distillation.moonshine(vgg(), "S", layers="c3")
    assert [a.teacher_layer_name for a in distiller.distillation_losses] == ["c3"]


def test_moonshine_losses_are_those_of_the_maps():
    teacher = vgg()
    distiller = kc.distillation.moonshine(teacher, "B(2)", beta=8.0)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = distiller.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"]
    expected = 0.0
    for name, size in (("c2", 14 * 14), ("c3", 7 * 7)):
        maps = []
        for model in (teacher, distiller.student):
            tensor = keras.Model(model.inputs[0], model.get_layer(name).output)(X)
            q = (ops.convert_to_numpy(tensor) ** 2).sum(-1).reshape(8, -1)
            maps.append(q / np.linalg.norm(q, axis=1, keepdims=True))
        expected += 4.0 / size * np.linalg.norm(maps[0] - maps[1], axis=1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_moonshine_trains_the_student_and_leaves_the_teacher():
    teacher = vgg()
    before = teacher.get_weights()
    distiller = kc.distillation.moonshine(teacher, "BG(2,2)")
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student = [ops.convert_to_numpy(w) for w in distiller.student.trainable_weights]
    distiller.fit(X, Y, batch_size=4, verbose=0)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    moved = [
        np.abs(old - ops.convert_to_numpy(new)).max() > 0
        for old, new in zip(student, distiller.student.trainable_weights, strict=True)
    ]
    assert all(moved)


@on_tensorflow
def test_moonshine_groups_run_as_groups_in_the_tflite():
    from keras_compress.export.flatbuffer import Flatbuffer

    student = kc.distillation.moonshine(vgg(), "G(4)").student
    lite = kc.export.to_tflite(student)
    np.testing.assert_allclose(lite.predict(X), student(X), atol=1e-4)
    flatbuffer = Flatbuffer(lite.content)
    graph = flatbuffer.model.subgraphs[0]
    shapes = [tuple(tensor.shape) for tensor in graph.tensors if len(tensor.shape) == 4]
    # (filters, height, width, channels of a group): no channel of zeros, no layer for each group.
    assert (8, 3, 3, 2) in shapes and (16, 5, 3, 4) in shapes
    # Batch normalizations are folded.
    assert lite.ops.count("CONV_2D") == 5 and not {"SPLIT", "MUL", "ADD"} & set(lite.ops)


def test_moonshine_refuses_what_it_cannot_do():
    for block in ("G", "G(0)", "X(2)", "BG(2)", 4):
        with pytest.raises(ValueError, match="`block` must be"):
            kc.distillation.moonshine(vgg(), block)
    with pytest.raises(ValueError, match="16 does not divide the 8 input channels of 'c2'"):
        kc.distillation.moonshine(vgg(), "G(16)")
    with pytest.raises(ValueError, match="16 does not divide the 8 channels of the bottleneck"):
        kc.distillation.moonshine(vgg(), "BG(2,16)")
    with pytest.raises(ValueError, match="8 does not divide|no layer that has|chooses 'p'"):
        kc.distillation.moonshine(vgg(), "S", layers="p")
    with pytest.raises(ValueError, match="no convolution larger than 1x1 but the first"):
        model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)])
        kc.distillation.moonshine(model)
    with pytest.raises(ValueError, match="fixed shape"):
        x = inputs = keras.Input((None, None, 3))
        x = layers.Conv2D(4, 3)(layers.Conv2D(4, 3)(x))
        kc.distillation.moonshine(keras.Model(inputs, x))

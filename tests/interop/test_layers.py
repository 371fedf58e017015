"""Every kind of layer, and every TensorFlow function in a graph: equal outputs."""

import keras
import numpy as np
import pytest

from keras_compress.interop import from_tf_keras
from tests.interop import legacy

pytestmark = legacy.needs_tf_keras
RNG = np.random.default_rng(0)
im, sq = (8, 8, 4), (6, 4)


class Layers:
    """`tf_keras.layers`, and Sequential with them."""

    def __getattr__(self, name):
        library = legacy.tf_keras()
        return library.Sequential if name == "Sequential" else getattr(library.layers, name)


CASES = {
    "dense": (
        lambda L, tf, x: L.Dense(
            3, activation="gelu", kernel_regularizer="l2", kernel_constraint="max_norm"
        )(x),
        (5,),
    ),
    "conv1": (lambda L, tf, x: L.Conv1D(3, 3, padding="causal", dilation_rate=2)(x), sq),
    "conv2": (
        lambda L, tf, x: L.Conv2D(
            4, 3, strides=2, padding="same", groups=2, activation=tf.nn.leaky_relu
        )(x),
        im,
    ),
    "conv3": (lambda L, tf, x: L.Conv3D(2, 2)(x), (4, 4, 4, 2)),
    "dw": (lambda L, tf, x: L.DepthwiseConv2D(3, depth_multiplier=2, activation="swish")(x), im),
    "dw1": (lambda L, tf, x: L.DepthwiseConv1D(3)(x), sq),
    "sep": (lambda L, tf, x: L.SeparableConv2D(5, 3)(x), im),
    "sep1": (lambda L, tf, x: L.SeparableConv1D(5, 3)(x), sq),
    "ct": (
        lambda L, tf, x: L.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1)(x),
        im,
    ),
    "ct1": (lambda L, tf, x: L.Conv1DTranspose(5, 3, strides=2)(x), sq),
    "ct3": (lambda L, tf, x: L.Conv3DTranspose(2, 2)(x), (4, 4, 4, 2)),
    "bn": (lambda L, tf, x: L.BatchNormalization()(x), im),
    "bn1": (lambda L, tf, x: L.BatchNormalization(axis=1, scale=False)(x), im),
    "sbn": (lambda L, tf, x: L.BatchNormalization(synchronized=True)(x), im),
    "ln": (lambda L, tf, x: L.LayerNormalization(axis=[1, 2])(x), im),
    "gn": (lambda L, tf, x: L.GroupNormalization(2)(x), im),
    "un": (lambda L, tf, x: L.UnitNormalization()(x), im),
    "sn": (lambda L, tf, x: L.SpectralNormalization(L.Conv2D(3, 3))(x), im),
    "emb": (lambda L, tf, x: L.Embedding(10, 3, mask_zero=True)(x), (6,), "int32"),
    "emblstm": (lambda L, tf, x: L.LSTM(3)(L.Embedding(10, 3, mask_zero=True)(x)), (6,), "int32"),
    "lstm": (lambda L, tf, x: L.LSTM(3, return_sequences=True, return_state=True)(x), sq),
    "lstmh": (
        lambda L, tf, x: L.LSTM(3, recurrent_activation="hard_sigmoid", go_backwards=True)(x),
        sq,
    ),
    "gru": (lambda L, tf, x: L.GRU(3)(x), sq),
    "gru0": (lambda L, tf, x: L.GRU(3, reset_after=False)(x), sq),
    "srnn": (lambda L, tf, x: L.SimpleRNN(3)(x), sq),
    "rnn": (lambda L, tf, x: L.RNN([L.LSTMCell(3), L.GRUCell(4)])(x), sq),
    "bi": (lambda L, tf, x: L.Bidirectional(L.LSTM(3, return_sequences=True))(x), sq),
    "bi2": (
        lambda L, tf, x: L.Bidirectional(
            L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True), merge_mode="sum"
        )(x),
        sq,
    ),
    "bimask": (
        lambda L, tf, x: L.Bidirectional(L.GRU(3, return_sequences=True))(L.Masking()(x * 0)),
        sq,
    ),
    "convlstm": (lambda L, tf, x: L.ConvLSTM2D(3, 2)(x), (3, 5, 5, 2)),
    "td": (lambda L, tf, x: L.TimeDistributed(L.Dense(3, activation="tanh"))(x), sq),
    "tdm": (
        lambda L, tf, x: L.TimeDistributed(
            L.Sequential([L.Input((4,)), L.Dense(3), L.BatchNormalization()])
        )(x),
        sq,
    ),
    "mha": (
        lambda L, tf, x: L.MultiHeadAttention(2, 3, value_dim=2)(x, x, use_causal_mask=True),
        sq,
    ),
    "mhas": (
        lambda L, tf, x: L.MultiHeadAttention(2, 3, use_bias=False, output_shape=5)(
            x, x * 2, x * 3, return_attention_scores=True
        ),
        sq,
    ),
    "att": (lambda L, tf, x: L.Attention(use_scale=True, score_mode="concat")([x, x * 2]), sq),
    "aatt": (lambda L, tf, x: L.AdditiveAttention()([x, x * 2, x * 0.5]), sq),
    "prelu": (lambda L, tf, x: L.PReLU(shared_axes=[1, 2])(x), im),
    "leaky": (lambda L, tf, x: L.LeakyReLU(0.1)(x), im),
    "thr": (lambda L, tf, x: L.ThresholdedReLU(0.4)(x), im),
    "elu": (lambda L, tf, x: L.ELU(0.4)(x), im),
    "relu": (lambda L, tf, x: L.ReLU(1.0, 0.1, 0.2)(x), im),
    "soft": (lambda L, tf, x: L.Softmax(1)(x), im),
    "eins": (lambda L, tf, x: L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(x), sq),
    "pools": (
        lambda L, tf, x: [
            L.MaxPooling2D(2, 1, "same")(x),
            L.AveragePooling2D(3, 2, "same")(x),
            L.GlobalMaxPooling2D(keepdims=True)(x),
            L.GlobalAveragePooling2D()(x),
        ],
        im,
    ),
    "resh": (
        lambda L, tf, x: [
            L.Flatten()(x),
            L.Reshape((-1, 4))(x),
            L.Permute((2, 1, 3))(x),
            L.ZeroPadding2D(((1, 2), (0, 1)))(x),
            L.Cropping2D(1)(x),
            L.UpSampling2D(2, interpolation="bilinear")(x),
        ],
        im,
    ),
    "merge": (
        lambda L, tf, x: [
            L.Add()([x, x * 2]),
            L.Concatenate(1)([x, x]),
            L.Multiply()([x, x]),
            L.Maximum()([x, -x]),
            L.Minimum()([x, -x]),
            L.Average()([x, x]),
            L.Subtract()([x, 2 * x]),
            L.Dot(axes=(2, 2), normalize=True)([x, x * 2]),
        ],
        sq,
    ),
    "drop": (
        lambda L, tf, x: L.Dropout(0.5, noise_shape=(None, 1, 1, 4), seed=3)(
            L.SpatialDropout2D(0.3)(
                L.GaussianNoise(0.1)(
                    L.GaussianDropout(0.1)(L.AlphaDropout(0.1)(L.ActivityRegularization(0.1)(x)))
                )
            )
        ),
        im,
    ),
    "resc": (lambda L, tf, x: L.Resizing(5, 5)(L.Rescaling(0.5, 1.0)(x)), im),
    "norm2": (
        lambda L, tf, x: L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4])(x),
        im,
    ),
    "crop": (lambda L, tf, x: L.CenterCrop(6, 6)(x), im),
    "aug": (
        lambda L, tf, x: [
            L.RandomFlip("horizontal")(x, training=False),
            L.RandomRotation(0.1)(x, training=False),
            L.RandomZoom(0.1)(x, training=False),
            L.RandomContrast(0.1)(x, training=False),
        ],
        im,
    ),
    "lambda": (lambda L, tf, x: L.Lambda(lambda t: tf.square(t) + 1)(x), im),
    "ident": (lambda L, tf, x: L.Identity()(L.Activation("hard_sigmoid")(x)), im),
    "rep": (lambda L, tf, x: L.RepeatVector(3)(x), (5,)),
    "masking": (lambda L, tf, x: L.GRU(3)(L.Masking(0.0)(x)), sq),
    "initst": (lambda L, tf, x: L.LSTM(3)(x, initial_state=[x[:, 0, :3], x[:, 1, :3]]), sq),
    "birstate": (
        lambda L, tf, x: L.Bidirectional(L.GRU(3))(x, initial_state=[x[:, 0, :3], x[:, 1, :3]]),
        sq,
    ),
    "cat": (lambda L, tf, x: L.CategoryEncoding(5, output_mode="multi_hot")(x), (3,), "int32"),
    "disc": (lambda L, tf, x: L.Discretization([-1.0, 0.0, 1.0])(x), (3,)),
    "intl": (lambda L, tf, x: L.IntegerLookup(vocabulary=[1, 3, 4])(x), (3,), "int64"),
    "hash": (lambda L, tf, x: L.Hashing(7)(x), (3,), "int64"),
    "actlayer": (lambda L, tf, x: L.Dense(3, activation=L.PReLU())(x), (5,)),
    "slash": (lambda L, tf, x: L.Dense(3, name="a/b")(x), (5,)),
    "opsA": (
        lambda L, tf, x: [
            tf.nn.relu(x) + 1.0,
            1 - x,
            x / 2.0,
            x**2,
            tf.reshape(x, (-1, 2, 12)),
            tf.concat([x, 2 * x], -1),
            x[:, 0],
            x[..., 1:3],
            x[:, ::2, None],
            tf.reduce_mean(x, [1, 2]),
            tf.transpose(x, [0, 2, 1]),
            tf.stack([x, x], 1),
            tf.split(x, 2, -1),
            tf.unstack(x, axis=1),
            tf.matmul(x, x, transpose_b=True),
            tf.cast(x > 0, tf.float32),
            tf.clip_by_value(x, -1, 1),
            tf.pad(x, [[0, 0], [1, 1], [0, 0]]),
            tf.math.l2_normalize(x, -1),
            tf.nn.softmax(x),
            tf.expand_dims(x, 1),
            tf.tile(x, [1, 2, 1]),
            tf.where(x > 0, x, x * 2),
            tf.maximum(x, 0.5),
            tf.norm(x, axis=-1),
            tf.einsum("abc,dc->abd", x, tf.ones((2, 4))),
            x * tf.constant([1.0, 2, 3, 4]),
            -x,
            abs(x),
            tf.argmax(x, -1),
            tf.squeeze(x[:, :1], 1),
            tf.gather(x, [0, 2], axis=1),
            tf.reduce_max(x, axis=1, keepdims=True),
            tf.math.reduce_variance(x, 1),
            tf.nn.leaky_relu(x, 0.3),
            tf.nn.gelu(x),
            tf.nn.silu(x),
            tf.sigmoid(x),
            tf.exp(x),
            tf.cumsum(x, 1),
            tf.reverse(x, [1]),
            tf.zeros_like(x),
            tf.ones_like(x),
            x @ tf.ones((4, 2)),
            tf.math.squared_difference(x, 1.0),
            tf.one_hot(tf.argmax(x, -1), 4),
            tf.reduce_sum(x),
            tf.identity(x),
            tf.round(x),
            tf.math.floordiv(x, 0.5),
            tf.cast(tf.logical_and(x > 0, x < 1), tf.float32),
        ],
        sq,
    ),
    "opshape": (
        lambda L, tf, x: [
            tf.reshape(x, (tf.shape(x)[0], -1)),
            tf.reshape(x, [tf.shape(x)[0], x.shape[1] * x.shape[2]]),
            tf.reshape(x, tf.stack([tf.shape(x)[0], tf.shape(x)[1] * 2, 2])),
        ],
        sq,
    ),
    "resize": (
        lambda L, tf, x: [
            tf.image.resize(x, (5, 7)),
            tf.image.resize(x, (16, 16), method="nearest"),
        ],
        im,
    ),
}


def data(shape, dtype):
    if dtype == "float32":
        return RNG.normal(size=(3, *shape)).astype(dtype)
    return RNG.integers(0, 5, size=(3, *shape)).astype(dtype)


# Off TensorFlow: a Lambda of TensorFlow functions; tf_keras's SpectralNormalization takes Keras 3's
# InputSpec for its own; attention of Keras 3 on JAX wants value_dim == key_dim.
ON_TENSORFLOW = {"lambda", "sn", "mha"}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_equal(case):
    if case in ON_TENSORFLOW and keras.backend.backend() != "tensorflow":
        pytest.skip("runs on the TensorFlow backend only, see ON_TENSORFLOW")
    import tensorflow as tf

    make, shape, dtype = (*CASES[case], "float32")[:3]
    library = legacy.tf_keras()
    inputs = library.Input(shape, dtype=dtype)
    old = legacy.fill(library.Model(inputs, make(Layers(), tf, inputs)))
    legacy.assert_same_outputs(old, from_tf_keras(old), data(shape, dtype))


def test_normalization_that_was_adapted():
    library = legacy.tf_keras()
    layer = library.layers.Normalization()
    layer.adapt(3 * data((20, 4), "float32") + 1)
    inputs = library.Input((20, 4))
    old = library.Model(inputs, layer(inputs))
    legacy.assert_same_outputs(old, from_tf_keras(old), data((20, 4), "float32"))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings need TensorFlow")
def test_lookups_of_strings():
    library = legacy.tf_keras()
    texts = np.array([["a b c"], ["b b x"]])
    vectorize = library.layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(texts)
    lookup = library.layers.StringLookup(vocabulary=["b", "a"], num_oov_indices=2)
    inputs = library.Input((1,), dtype="string")
    old = library.Model(inputs, [vectorize(inputs), lookup(inputs)])
    new = from_tf_keras(old)
    words = np.array([["a"], ["b c"], ["unknown"]])
    import tensorflow as tf

    for want, got in zip(old(tf.constant(words)), new(tf.constant(words)), strict=True):
        np.testing.assert_array_equal(want, got)


def test_stateful_rnn_goes_on_from_its_last_state():
    library = legacy.tf_keras()
    inputs = library.Input(batch_shape=(3, 6, 4))
    layer = library.layers.LSTM(3, stateful=True)
    old = legacy.fill(library.Model(inputs, layer(inputs)))
    new = from_tf_keras(old)
    for _ in range(2):
        x = data((6, 4), "float32")
        legacy.assert_same_outputs(old, new, x)


def test_training_goes_the_same_way():
    library = legacy.tf_keras()
    old = library.Sequential(
        [
            library.layers.Input((8, 8, 3)),
            library.layers.Conv2D(4, 3, kernel_regularizer=library.regularizers.L2(0.01)),
            # The fused one of tf_keras moves its variance by N / (N - 1) of the batch's.
            library.layers.BatchNormalization(momentum=0.8, fused=False),
            library.layers.ReLU(6.0),
            library.layers.GlobalMaxPooling2D(),
            library.layers.Dense(2, kernel_constraint="non_neg"),
        ]
    )
    old.compile(library.optimizers.SGD(0.05, momentum=0.9), "mse")
    new = from_tf_keras(legacy.fill(old))
    x, y = data((8, 8, 3), "float32"), data((2,), "float32")
    old.fit(x, y, epochs=5, verbose=0)
    new.fit(x, y, epochs=5, verbose=0)
    legacy.assert_same_outputs(old, new, x, tolerance=1e-4)
    assert keras.ops.min(new.layers[-1].kernel) >= 0

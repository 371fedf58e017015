"""WaveletAutoEncoder: images as a small one, and small details to make them whole from."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.models.images import channel_axis, conv

#: Signs of Haar's detail bands at the 2x2 positions: along the width, the height, the diagonal.
_DETAILS = np.array([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]])


@keras.saving.register_keras_serializable(package="keras_compress")
class WaveletAutoEncoder(keras.Model):
    """Splits images in a low- and a high-frequency part of half the height and width.

    The encoder gives `(I_L, I_H)`, by a convolution with strides of 2 each, the decoder the image
    from both. Training minimises `mean (I - decoded)^2 + energy_weight * mean I_H^2`, so that what
    matters goes into `I_L`, which `kc.models.accelerate_by_wavelet` gives to a classifier in the
    place of the image. `fit(images)` needs no targets, and `compile` no loss: one given there takes
    the place of the squared difference.

    With `initial="haar"` it begins as Haar's transform: `I_L` is the mean of each 2x2 pixels, on
    the scale of the image, `I_H` the three differences of each channel, and the decoded image the
    image itself, exactly. Hidden filters that Haar does not need begin random.

    Args:
        channels: Of the image, and of `I_L`.
        filters: Filters of each hidden 3x3 convolution with ReLU before the strided ones, at full
            resolution; the decoder mirrors them. The paper has `(16, 16, 16)`: 2 % of the
            multiply-accumulates of VGG-16, but a quarter of those of one a quarter as wide. Haar
            needs at least `2 * channels` each.
        kernel_size: Of the strided convolutions: an even number, at least 2.
        high_channels: Of `I_H`; by default `3 * channels`, without which there is no exact
            transform. The paper has `channels`.
        energy_weight: The lambda of the paper, at least 0.
        initial: `"haar"` or `"random"`.
        name: Name of the model.
        **kwargs: `dtype`, `trainable`, as in Keras.

    Input shape:
        `(batch, height, width, channels)`, or channels first where that is Keras's setting. Odd
        sizes are padded with zeros below and on the right, and cropped again.

    Output shape:
        As the input. Of `encoder`: `(batch, ceil(height / 2), ceil(width / 2), channels)`, and the
        same with `high_channels`.

    Raises:
        ValueError: if an argument is out of range, or Haar's transform does not fit in.

    Reference:
        Chen, Lin, Zuo, Luo, Zhang, "Learning a Wavelet-like Auto-Encoder to Accelerate Deep Neural
        Networks", 2018.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> wae = kc.models.WaveletAutoEncoder(channels=1)
    >>> x = np.random.default_rng(0).random((8, 7, 6, 1), "float32")
    >>> low, high = wae.encoder(x)
    >>> low.shape == (8, 4, 3, 1), high.shape == (8, 4, 3, 3)
    (True, True)
    >>> bool(np.allclose(wae(x), x, atol=1e-6))
    True
    >>> wae.compile("adam")
    >>> history = wae.fit(x, verbose=0)
    """

    def __init__(
        self,
        channels=3,
        filters=(),
        kernel_size=2,
        high_channels=None,
        energy_weight=0.1,
        initial="haar",
        name="wavelet",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.channels = validation.positive_int("channels", channels, self)
        self.filters = validation.positive_ints("filters", filters, self)
        self.kernel_size = validation.positive_int("kernel_size", kernel_size, self)
        if self.kernel_size % 2:
            raise ValueError(
                "WaveletAutoEncoder: `kernel_size` must be even, so that windows of strides 2 lie "
                f"alike for even and odd sizes; got kernel_size={kernel_size!r}."
            )
        self.high_channels = validation.positive_int(
            "high_channels", 3 * channels if high_channels is None else high_channels, self
        )
        self.energy_weight = validation.number("energy_weight", energy_weight, 0, owner=self)
        self.initial = validation.one_of("initial", initial, ("haar", "random"), self)
        self.encoder = self._make_encoder()
        self.decoder = self._make_decoder()
        if self.initial == "haar":
            self.set_haar()
        self.built = True

    def _make_encoder(self):
        x = inputs = keras.Input(self._shape(self.channels), name="image")
        for number, filters in enumerate(self.filters, 1):
            x = self._conv(f"encode{number}", filters, 3, activation="relu")(x)
        low = self._conv("low", self.channels, self.kernel_size, 2)(x)
        high = self._conv("high", self.high_channels, self.kernel_size, 2)(x)
        return keras.Model(inputs, [low, high], name="encoder")

    def _make_decoder(self):
        low, high = (keras.Input(self._shape(n)) for n in (self.channels, self.high_channels))
        x = keras.layers.Concatenate(channel_axis(), dtype=self.dtype_policy)([low, high])
        backwards = self.filters[::-1]
        x = keras.layers.Conv2DTranspose(
            backwards[0] if backwards else self.channels,
            self.kernel_size,
            2,
            "same",
            activation="relu" if backwards else None,
            name=f"{self.name}_up",
            dtype=self.dtype_policy,
        )(x)
        for number, filters in enumerate(backwards[1:], 1):
            x = self._conv(f"decode{number}", filters, 3, activation="relu")(x)
        if backwards:
            x = self._conv("decoded", self.channels, 3)(x)
        return keras.Model([low, high], x, name="decoder")

    def _conv(self, part, *args, **kwargs):
        name = f"{self.name}_{part}"
        return conv(*args, name=name, use_bias=True, dtype=self.dtype_policy, **kwargs)

    def _shape(self, channels):
        return (channels, None, None) if channel_axis() == 1 else (None, None, channels)

    def call(self, inputs):
        low, high = self.encoder(inputs)
        self.add_loss(self.energy_weight * ops.mean(ops.square(ops.cast(high, "float32"))))
        decoded = self.decoder([low, high])
        # The decoder gives an even number of rows and columns.
        if channel_axis() == 1:
            return decoded[:, :, : ops.shape(inputs)[2], : ops.shape(inputs)[3]]
        return decoded[:, : ops.shape(inputs)[1], : ops.shape(inputs)[2]]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y = x if y is None else y
        # With the energy, which `call` adds.
        total = super().compute_loss(x, y, y_pred, sample_weight, training)
        if self.loss is not None:
            return total
        error = ops.cast(y_pred, "float32") - ops.cast(y, "float32")
        return total + ops.mean(ops.square(error))

    def set_haar(self):
        """Sets the weights so that the model computes Haar's transform and its inverse.

        Raises:
            ValueError: if it has too few channels or filters for them.
        """
        if self.high_channels != 3 * self.channels:
            raise ValueError(
                f"WaveletAutoEncoder: Haar's transform of {self.channels} channels has "
                f"{3 * self.channels} of high frequency; got high_channels={self.high_channels}. "
                "Leave `high_channels` out, or set initial='random'."
            )
        if self.filters and min(self.filters) < 2 * self.channels:
            raise ValueError(
                "WaveletAutoEncoder: to hand an image on, hidden layers with ReLU need "
                f"{2 * self.channels} filters (each of {self.channels} channels and its negative); "
                f"got filters={self.filters}. Give more, or set initial='random'."
            )
        layers = {layer.name: layer for layer in (*self.encoder.layers, *self.decoder.layers)}
        start = (self.kernel_size - 2) // 2

        def set_kernel(part, taps, start):
            layer = layers[f"{self.name}_{part}"]
            kernel = ops.convert_to_numpy(layer.kernel).copy()
            height, width, first, second = taps.shape
            # Outputs beyond those needed stay random, and are not read yet.
            if part == "up":
                kernel[:, :, :first] = 0
            else:
                kernel[..., :second] = 0
            kernel[start : start + height, start : start + width, :first, :second] = taps
            layer.kernel.assign(kernel)
            layer.bias.assign(np.zeros(layer.bias.shape))

        # An image is handed on as x and -x, of which ReLU leaves the one that is positive.
        eye = np.eye(self.channels)
        signed = np.kron(eye, [[1.0, -1.0]])
        read = eye
        for number in range(1, len(self.filters) + 1):
            set_kernel(f"encode{number}", (read @ signed)[None, None], 1)
            read = signed.T
        low = np.ones((2, 2, 1, 1)) * eye
        high = np.kron(eye, np.moveaxis(_DETAILS, 0, -1)[:, :, None])
        set_kernel("low", np.einsum("sc,hwco->hwso", read, low / 4), start)
        set_kernel("high", np.einsum("sc,hwco->hwso", read, high / 4), start)
        written = signed if self.filters else eye
        up = np.concatenate([low, high], axis=3)
        set_kernel("up", np.einsum("hwcb,cs->hwsb", up, written), start)
        for number in range(1, len(self.filters)):
            set_kernel(f"decode{number}", (signed.T @ signed)[None, None], 1)
        if self.filters:
            set_kernel("decoded", signed.T[None, None], 1)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "high_channels": self.high_channels,
            "energy_weight": self.energy_weight,
            "initial": self.initial,
        }

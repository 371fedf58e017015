"""What hashed layers share: a short vector of values, and how the kernel is made of it."""

import math

import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.stored_kernel import HashedKernel
from keras_compress.sharing import hashing

# Mean square of tanh of a standard normal variable.
_TANH_SQUARE = 0.394
# Entries that the reconstruction network is fitted to.
_SAMPLE = 65536


class HashedWeights:
    """Mixin, left of a base of compressed layers: a kernel shared by hashing.

    Args:
        *args: For the layer's own base.
        compression: See `HashedDense`.
        seed: See `HashedDense`.
        num_hashes: See `HashedDense`.
        reconstruction: See `HashedDense`.
        **kwargs: For the layer's own base.
    """

    def __init__(
        self, *args, compression=1 / 8, seed=0, num_hashes=1, reconstruction=None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        options = _check_options(self, compression, seed, num_hashes, reconstruction)
        self.compression, self.seed, self.num_hashes, self.reconstruction = options.values()

    def build_kernel(self, input_channels):
        shape = self.kernel_shape(input_channels)
        area = math.prod(shape[:-2])
        sigma = initializer_stddev(self.kernel_initializer, area * shape[-2], area * shape[-1])
        self.values = self.add_kernel_weight(
            "values",
            (bucket_count(self.compression, math.prod(shape)),),
            self.normal_initializer(sigma),
        )
        self._seeds = hashing.hash_seeds(self.seed, self.num_hashes)
        self.network = []
        sizes = _network_sizes(self.num_hashes, self.reconstruction)
        spread = sigma or 1.0
        for layer, (fan_in, fan_out) in enumerate(sizes):
            # The spread of the kernel at both ends, that of tanh's range in between.
            variance = 1 / _TANH_SQUARE if layer else spread**-2
            variance *= spread**2 if layer == len(sizes) - 1 else 1
            stddev = math.sqrt(variance / fan_in)
            self._add_network_weight(
                f"reconstruction_{layer}",
                (fan_in, fan_out),
                self.normal_initializer(stddev, layer + 1),
            )
            self._add_network_weight(f"reconstruction_bias_{layer}", (fan_out,), "zeros")

    def _add_network_weight(self, name, shape, initializer):
        # Not of the kernel: regularizer and constraint are for the values.
        weight = self.add_weight(name=name, shape=shape, initializer=initializer)
        self._kernel_weights.append(weight)
        self.network.append(weight)

    def call(self, inputs, training=None):
        return self.add_bias_and_activate(self.apply_kernel(inputs, training))

    def apply_kernel(self, inputs, training=None):
        values = ops.convert_to_tensor(self.values)
        shape = self.kernel_shape(self.input_channels)
        # Not fused in inference, so that saved graphs run without XLA.
        fetched = [
            hashing.expand_values_tensor(values, shape, seed, bool(training))
            for seed in self._seeds
        ]
        if self._is_plain():
            kernel = fetched[0]
        else:
            network = [ops.convert_to_tensor(weight) for weight in self.network]
            kernel = hashing.recover_tensor(ops.stack(fetched, axis=-1), network)
        return self.multiply(inputs, kernel)

    def _is_plain(self):
        return self.num_hashes == 1 and self.reconstruction is None

    def reconstruct_kernel(self):
        if self._is_plain():
            return self._stored_kernel().dense()
        values = ops.convert_to_numpy(self.values)
        fetched = hashing.fetch_values(values, self.kernel_shape(self.input_channels), self._seeds)
        network = [ops.convert_to_numpy(weight) for weight in self.network]
        return ops.convert_to_numpy(hashing.recover_tensor(fetched, network))

    def _stored_kernel(self):
        return HashedKernel(
            ops.convert_to_numpy(self.values), self.seed, self.kernel_shape(self.input_channels)
        )

    def export_form(self):
        """The values alone, as int8, hashed into the kernel when the .tflite is loaded.

        A kernel that several hashes or a network make is stored as it is.
        """
        self.check_built("export_form")
        if not self._is_plain():
            return self.expand()
        return self.stored_form.of(self, self._stored_kernel())

    @classmethod
    def fit_kernel(cls, kernel, *, compression=1 / 8, seed=0, num_hashes=1, reconstruction=None):
        """Fits the values by least squares, and then the last layer of the network.

        Its hidden layers are random: the product of the fit is where training starts.

        Args:
            kernel: Array in the source layer's layout.
            compression: As for the layer.
            seed: As for the layer.
            num_hashes: As for the layer.
            reconstruction: As for the layer.
        """
        options = _check_options(cls.__name__, compression, seed, num_hashes, reconstruction)
        seeds = hashing.hash_seeds(options["seed"], options["num_hashes"])
        count = bucket_count(options["compression"], kernel.size)
        values = hashing.fit_fetched_values(kernel, count, seeds)
        fetched = hashing.fetch_values(values, kernel.shape, seeds)
        network = _fit_network(
            fetched.reshape(kernel.size, -1), kernel.ravel(), options["reconstruction"], seed
        )
        return options, [values, *network]

    def get_config(self):
        return {
            **super().get_config(),
            "compression": self.compression,
            "seed": self.seed,
            "num_hashes": self.num_hashes,
            "reconstruction": self.reconstruction,
        }


def bucket_count(compression, entries):
    """Number of free weights of so many entries."""
    # Rounded first: 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(round(compression * entries, 6)))


def _check_options(owner, compression, seed, num_hashes, reconstruction):
    if reconstruction is not None:
        reconstruction = validation.positive_ints("reconstruction", reconstruction, owner)
    return {
        "compression": validation.number(
            "compression", compression, 0, 1, low_open=True, owner=owner
        ),
        "seed": validation.seed(seed, owner),
        "num_hashes": validation.positive_int("num_hashes", num_hashes, owner),
        "reconstruction": reconstruction,
    }


def _network_sizes(num_hashes, reconstruction):
    """`(inputs, outputs)` of each layer of the network."""
    if reconstruction is None:
        return []
    sizes = (num_hashes, *reconstruction, 1)
    return list(zip(sizes, sizes[1:], strict=False))


def _fit_network(fetched, entries, reconstruction, seed):
    """Weights and biases in turn: random hidden layers, the last one by least squares."""
    sizes = _network_sizes(fetched.shape[-1], reconstruction)
    rng = np.random.default_rng(seed)
    if len(entries) > _SAMPLE:
        sample = rng.choice(len(entries), _SAMPLE, replace=False)
        fetched, entries = fetched[sample], entries[sample]
    hidden, network = fetched.astype("float64"), []
    for fan_in, fan_out in sizes[:-1]:
        spread = math.sqrt(np.mean(hidden**2)) or 1.0
        weights = rng.normal(size=(fan_in, fan_out)) / (spread * math.sqrt(fan_in))
        network += [weights, np.zeros(fan_out)]
        hidden = np.tanh(hidden @ weights)
    if sizes:
        design = np.column_stack([hidden, np.ones(len(hidden))])
        *weights, bias = np.linalg.lstsq(design, entries, rcond=None)[0]
        network += [np.array(weights)[:, None], np.array([bias])]
    return [array.astype("float32") for array in network]

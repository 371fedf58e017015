"""SoftWeightSharing: a learned mixture of Gaussians as prior of all weights of a model."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.sharing.mixture import Mixture

# Weights whose components are computed together: 17 components make 1.1 MB of it.
_CHUNK = 16_384


@keras.saving.register_keras_serializable(package="keras_compress")
class SoftWeightSharing(keras.layers.Layer, keras.regularizers.Regularizer):
    """Empirical prior: a mixture of Gaussians that weights are drawn to, and that follows them.

    `-tau sum_i log p(w_i)`, with `p(w) = sum_j pi_j N(w; mu_j, sigma_j^2)` over J components. The
    mean of component 0 is 0, and most weights belong to it. The other means, all sigmas and the
    shares pi are learned together with the weights; hyper-priors keep components from collapsing
    onto single weights.

    One prior speaks for all kernels of a model: `kc.callbacks.SoftWeightSharing(prior)` starts it
    from the weights of a trained model and trains both inside the compiled step, and
    `kc.sharing.quantize_mixture(model, prior)` sets the weights to the means. The prior itself is
    a layer, so that files and `BackupAndRestore` carry its variables while it trains.

    Called on a tensor it is the penalty of these weights. The components of a chunk of weights at a
    time are in memory, whatever the size of the kernel, in the backward pass as well. There is no
    second derivative.

    Args:
        components: Number J of components, the one at zero included.
        pi_zero: Share of component 0, in (0, 1); the start of it where `zero_share` is given.
        tau: Factor of the penalty.
        examples: Number N of training examples. The paper's loss is a sum over them; Keras's is a
            mean, and this makes the factor `tau / N`.
        zero_precision: `(shape, rate)` of the Gamma hyper-prior of the precision `1 / sigma^2` of
            component 0, or `None` for none. The default has its mode at a sigma of 0.02.
        precision: The same for each other component.
        zero_share: `(a, b)` of the Beta hyper-prior of pi_0, which is then learned; `None` keeps
            pi_0 at `pi_zero`.
        **kwargs: `name`, as in Keras.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Nowlan, Hinton, "Simplifying Neural Networks by Soft Weight-Sharing", 1992.
        Ullrich, Meeds, Welling, "Soft Weight-Sharing for Neural Network Compression", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(256, 8)).astype("float32")
    >>> y = x[:, :2].sum(axis=1, keepdims=True)
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.Adam(0.02), "mse")
    >>> history = model.fit(x, y, epochs=20, verbose=0)
    >>> prior = SoftWeightSharing(components=3, pi_zero=0.5, examples=256)
    >>> sharing = kc.callbacks.SoftWeightSharing(prior, learning_rate=0.01)
    >>> history = model.fit(x, y, epochs=20, callbacks=[sharing], verbose=0)
    >>> small = kc.sharing.quantize_mixture(model, prior)
    >>> kernel = keras.ops.convert_to_numpy(small.layers[0].kernel)
    >>> len(np.unique(kernel)) <= 3, int((kernel == 0).sum())
    (True, 6)
    """

    def __init__(
        self,
        components=17,
        pi_zero=0.99,
        tau=5e-3,
        examples=1,
        zero_precision=(5e3, 2.0),
        precision=(250.0, 0.1),
        zero_share=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.components = validation.positive_int("components", components, self)
        self.pi_zero = validation.number(
            "pi_zero", pi_zero, 0, 1, low_open=True, high_open=True, owner=self
        )
        self.tau = validation.number("tau", tau, 0, owner=self)
        self.examples = validation.positive_int("examples", examples, self)
        self.zero_precision = _pair("zero_precision", zero_precision, self)
        self.precision = _pair("precision", precision, self)
        self.zero_share = _pair("zero_share", zero_share, self)
        others = self.components - 1
        self.means = self._variable("means", (others,), np.linspace(-1, 1, others))
        self.log_sigmas = self._variable(
            "log_sigmas", (self.components,), math.log(0.5), self._hyper_penalty
        )
        self.log_shares = self._variable("log_shares", (others,), 0.0)
        self.zero_logit = None
        if self.zero_share is not None:
            logit = math.log(self.pi_zero / (1 - self.pi_zero))
            self.zero_logit = self._variable("zero_logit", (), logit)
        self.built = True
        self.started = False

    def _variable(self, name, shape, value, regularizer=None):
        def initializer(shape, dtype=None):
            return ops.broadcast_to(ops.convert_to_tensor(value, dtype), shape)

        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            regularizer=regularizer,
            dtype="float32",
            autocast=False,
        )

    def start(self, weights):
        """Spreads the components over trained weights.

        Means go evenly over the range of the weights, sigmas are a quarter of it, and the shares of
        all but component 0 are equal.

        Args:
            weights: List of arrays.
        """
        low = min(float(np.min(w)) for w in weights)
        high = max(float(np.max(w)) for w in weights)
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(
                "SoftWeightSharing: the mixture starts from the range of trained weights; got "
                f"weights from {low} to {high}. Train the model first."
            )
        self.means.assign(np.linspace(low, high, self.components - 1))
        self.log_sigmas.assign(np.full(self.components, math.log((high - low) / 4)))
        self.log_shares.assign(np.zeros(self.components - 1))
        if self.zero_logit is not None:
            self.zero_logit.assign(math.log(self.pi_zero / (1 - self.pi_zero)))
        self.started = True

    def __call__(self, weight):
        """Returns the penalty of a weight: a scalar tensor."""
        flat = ops.reshape(ops.cast(weight, "float32"), (-1,))
        log_likelihood = _log_likelihood(flat, *self._parameters())
        return ops.multiply(-self.tau / self.examples, log_likelihood)

    def _parameters(self):
        """Tensors: means, logs of sigmas and logs of shares, one entry a component."""
        # TensorFlow's custom gradients take tensors only, and this alone would stay a variable.
        log_sigmas = ops.add(self.log_sigmas, 0.0)
        if self.components == 1:
            return ops.zeros((1,)), log_sigmas, ops.zeros((1,))
        log_zero, log_rest = self._log_zero_share()
        log_others = ops.add(log_rest, ops.log_softmax(self.log_shares))
        return (
            ops.concatenate([ops.zeros((1,)), self.means]),
            log_sigmas,
            ops.concatenate([ops.reshape(log_zero, (1,)), log_others]),
        )

    def _log_zero_share(self):
        """`(log pi_0, log(1 - pi_0))`."""
        if self.zero_logit is None:
            return math.log(self.pi_zero), math.log1p(-self.pi_zero)
        return ops.log_sigmoid(self.zero_logit), ops.log_sigmoid(ops.negative(self.zero_logit))

    def _hyper_penalty(self, log_sigmas):
        """Minus the logarithms of the hyper-priors, but for constants, times the penalty's factor.

        It is the regularizer of the variable `log_sigmas`, so that a model adds it to its loss.
        """
        log_precisions = ops.multiply(-2.0, log_sigmas)
        total = ops.zeros(())
        for gamma, logs in (
            (self.zero_precision, log_precisions[:1]),
            (self.precision, log_precisions[1:]),
        ):
            if gamma is not None:
                shape, rate = gamma
                total = ops.add(total, ops.sum((1 - shape) * logs + rate * ops.exp(logs)))
        if self.zero_share is not None:
            a, b = self.zero_share
            log_zero, log_rest = self._log_zero_share()
            total = ops.subtract(total, (a - 1) * log_zero + (b - 1) * log_rest)
        return ops.multiply(self.tau / self.examples, total)

    @property
    def mixture(self):
        """The present `kc.sharing.Mixture`."""
        means, log_sigmas, log_shares = (
            ops.convert_to_numpy(parameter).astype("float64") for parameter in self._parameters()
        )
        return Mixture(np.exp(log_shares), means, np.exp(log_sigmas))

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.started = True

    def get_config(self):
        return {
            **super().get_config(),
            "components": self.components,
            "pi_zero": self.pi_zero,
            "tau": self.tau,
            "examples": self.examples,
            "zero_precision": self.zero_precision,
            "precision": self.precision,
            "zero_share": self.zero_share,
        }


def _pair(name, values, owner):
    if values is None:
        return None
    if isinstance(values, str) or not hasattr(values, "__iter__") or len(tuple(values)) != 2:
        raise ValueError(
            f"{validation.prefix(owner)}`{name}` must be two positive numbers or None; got "
            f"{name}={values!r}."
        )
    return tuple(validation.number(name, v, 0, low_open=True, owner=owner) for v in values)


@ops.custom_gradient
def _log_likelihood(weights, means, log_sigmas, log_shares):
    """`sum_i log p(w_i)` of a vector, with its gradients computed along with it.

    Left to automatic differentiation, all components of all weights would wait for the backward
    pass. All gradients are the incoming scalar times what is known here already.
    """
    size, whole = weights.shape[0], weights.shape[0] // _CHUNK * _CHUNK
    parts = []
    if whole:
        gradients, *terms = ops.map(
            lambda chunk: _chunk_sums(chunk, means, log_sigmas, log_shares),
            ops.reshape(weights[:whole], (-1, _CHUNK)),
        )
        parts.append((ops.reshape(gradients, (-1,)), *(ops.sum(t, axis=0) for t in terms)))
    if whole < size:
        parts.append(_chunk_sums(weights[whole:], means, log_sigmas, log_shares))
    of_weights, *sums = zip(*parts, strict=True)
    of_weights = ops.concatenate(of_weights)
    total, *of_mixture = (sum(terms) for terms in sums)

    def gradient(*arguments, upstream=None):
        upstream = arguments[0] if upstream is None else upstream
        return tuple(ops.multiply(upstream, known) for known in (of_weights, *of_mixture))

    return total, gradient


def _chunk_sums(weights, means, log_sigmas, log_shares):
    """Gradient of `log p` in each weight; sums of `log p` and of its gradients in the mixture."""
    sigmas = ops.exp(log_sigmas)
    z = ops.divide(ops.subtract(weights[:, None], means), sigmas)
    normalizer = log_shares - log_sigmas - 0.5 * math.log(2 * math.pi)
    log_joint = ops.subtract(normalizer, 0.5 * ops.square(z))
    largest = ops.max(log_joint, axis=1, keepdims=True)
    joint = ops.exp(ops.subtract(log_joint, largest))
    sums = ops.sum(joint, axis=1, keepdims=True)
    responsibilities = ops.divide(joint, sums)
    pull = ops.divide(ops.multiply(responsibilities, z), sigmas)
    return (
        ops.negative(ops.sum(pull, axis=1)),
        ops.sum(ops.add(largest, ops.log(sums))),
        ops.sum(pull, axis=0),
        ops.sum(ops.multiply(responsibilities, ops.square(z) - 1.0), axis=0),
        ops.sum(responsibilities, axis=0),
    )

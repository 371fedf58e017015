"""`SoftWeightSharing`: trains a mixture prior together with the weights that it speaks for."""

import keras
from keras import ops

from keras_compress import validation
from keras_compress.callbacks.guests import lend, take_back
from keras_compress.optimizers.wrapper import OptimizerWrapper
from keras_compress.pruning.prunable import kernels_of, prunable_kernels
from keras_compress.regularizers import SoftWeightSharing as Prior

# Attribute of a layer that holds the prior while it trains.
_ATTRIBUTE = "soft_weight_sharing"


class SoftWeightSharing(keras.callbacks.Callback):
    """Retrains a model under a `kc.regularizers.SoftWeightSharing` prior, and the prior with it.

    For the length of the `fit` the penalty is in the loss (also in the reported one, where its
    hyper-priors make a large constant), and the variables of the mixture are trainable weights of
    the model, trained by an Adam of their own; all inside the compiled step. The first `fit` starts
    the mixture from the weights that the model has, later ones go on with it. Afterwards the model
    is as before, with its own optimizer, but for its weights; `kc.sharing.quantize_mixture` then
    sets them to the means.

    Args:
        prior: The `kc.regularizers.SoftWeightSharing`.
        layers: Keys (layer name, glob, class or predicate) of the layers whose kernels it acts on.
            By default every trainable kernel; embeddings only if named.
        learning_rate: Rate of the Adam that trains the means; smaller than that of the weights.
        log_learning_rate: Rate of the logarithms of sigmas and shares, which have a longer way.

    Raises:
        ValueError: if `prior` is none, or a rate is no positive number; at the start of `fit`, if a
            key fits no layer, the model has no kernels, or its optimizer scales the loss.

    Reference:
        Ullrich, Meeds, Welling, "Soft Weight-Sharing for Neural Network Compression", 2017.

    Example: see `kc.regularizers.SoftWeightSharing`.
    """

    def __init__(self, prior, layers=None, learning_rate=1e-4, log_learning_rate=2e-3):
        super().__init__()
        if not isinstance(prior, Prior):
            raise ValueError(
                "SoftWeightSharing: `prior` must be a kc.regularizers.SoftWeightSharing; got "
                f"{type(prior).__name__}."
            )
        self.prior = prior
        self.layers = layers
        self.learning_rate = validation.number(
            "learning_rate", learning_rate, 0, low_open=True, owner=self
        )
        self.log_learning_rate = validation.number(
            "log_learning_rate", log_learning_rate, 0, low_open=True, owner=self
        )
        factor = self.log_learning_rate / self.learning_rate
        self._adam = _MixtureAdam(self.learning_rate, factor, prior)

    def set_model(self, model):
        super().set_model(model)
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "SoftWeightSharing: the optimizer scales the loss, which the mixture's own Adam "
                "would not undo; compile with auto_scale_loss=False, or use the policy "
                "'mixed_bfloat16'."
            )
        # What a fit that was interrupted has left.
        _take_off(model)
        kernels = kernels_of(model, self.layers, "SoftWeightSharing")
        if not self.prior.started:
            self.prior.start([ops.convert_to_numpy(kernel.variable) for kernel in kernels])
        lend(kernels[0].layer, _ATTRIBUTE, self.prior)
        for kernel in kernels:
            kernel.variable.regularizer = _WithPrior(self.prior, kernel.variable.regularizer)
        model.optimizer = _MixtureOptimizer(model.optimizer, self._adam)
        # Keras has built the optimizer that was there.
        model.optimizer.build(model.trainable_variables)
        model.train_function = model.test_function = None

    def on_train_end(self, logs=None):
        _take_off(self.model)


def _take_off(model):
    """Leaves a model without prior, and with its own optimizer."""
    take_back(model, _ATTRIBUTE)
    for kernel in prunable_kernels(model):
        regularizer = kernel.variable.regularizer
        if isinstance(regularizer, _WithPrior):
            kernel.variable.regularizer = regularizer.before
    if isinstance(model.optimizer, _MixtureOptimizer):
        model.optimizer = model.optimizer.inner_optimizer
    model.train_function = model.test_function = None


class _WithPrior:
    """Regularizer: the prior, and the regularizer that was there before."""

    def __init__(self, prior, before):
        self.prior = prior
        self.before = before

    def __call__(self, weight):
        penalty = self.prior(weight)
        return penalty if self.before is None else ops.add(penalty, self.before(weight))


class _MixtureAdam(keras.optimizers.Adam):
    """Adam of a prior's variables; the rate of all but the means is `factor` times that of these.

    Args:
        learning_rate: Rate of the means.
        factor: Number.
        prior: The `kc.regularizers.SoftWeightSharing`.
    """

    def __init__(self, learning_rate, factor, prior):
        super().__init__(learning_rate, name="mixture_adam")
        self._factor = factor
        self._prior = prior

    def owns(self, variable):
        return any(variable is own for own in self._prior.trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        # By position: on TensorFlow `variable` is not the Keras variable.
        mean = self._trainable_variables[self._get_variable_index(variable)] is self._prior.means
        rate = learning_rate if mean else ops.multiply(learning_rate, self._factor)
        super().update_step(gradient, variable, rate)


class _MixtureOptimizer(OptimizerWrapper):
    """Gives the variables of a mixture to an Adam of their own, all others to a model's optimizer.

    What it saves is the state of the model's optimizer, so that a file written while it is there
    loads into a model that is compiled as before.

    Args:
        optimizer: The model's optimizer.
        adam: A `_MixtureAdam`.
    """

    def __init__(self, optimizer, adam):
        super().__init__(optimizer, name="mixture_optimizer")
        self.mixture_optimizer = adam

    def build(self, variables):
        for optimizer, (own, _) in self._parts(variables):
            if not optimizer.built:
                optimizer.build(own)
        keras.optimizers.Optimizer.build(self, variables)

    @property
    def variables(self):
        return super().variables + self.mixture_optimizer.variables

    def apply(self, grads, trainable_variables=None):
        variables = self._trainable_variables
        if trainable_variables is not None:
            variables = list(trainable_variables)
            if not self.built:
                self.build(variables)
        for optimizer, (own, gradients) in self._parts(variables, grads):
            optimizer.apply(gradients, own)

    def _parts(self, variables, gradients=None):
        """Each optimizer with its variables and their gradients."""
        gradients = [None] * len(variables) if gradients is None else list(gradients)
        parts = {True: ([], []), False: ([], [])}
        for variable, gradient in zip(variables, gradients, strict=True):
            own, theirs = parts[self.mixture_optimizer.owns(variable)]
            own.append(variable)
            theirs.append(gradient)
        return (self.inner_optimizer, parts[False]), (self.mixture_optimizer, parts[True])

    def save_own_variables(self, store):
        self.inner_optimizer.save_own_variables(store)

    def load_own_variables(self, store):
        self.inner_optimizer.load_own_variables(store)

"""`OptimizerWrapper`: base of optimizers that act around another one."""

import keras


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Base of optimizers that change what goes into another one, or what comes out of it.

    The inner optimizer does the update, with its own learning rate, clipping, accumulation and
    moving average; what concerns these is passed on to it. A subclass writes one or both of

        transform_gradients(gradients, variables)   gradients that the inner optimizer gets
        after_update(variables)                     what happens to the weights after its update

    and adds its own arguments to `get_config`. Both run inside the compiled step, on every backend,
    in `keras.ops`; variables are changed by `self.assign(variable, value)`. State is made in
    `build(variables)` by `self.add_variable`, before `super().build(variables)`.

    Args:
        optimizer: The `keras.optimizers.Optimizer` to wrap, or its name or configuration.
        name: Name of the wrapper.

    Raises:
        ValueError: if `optimizer` is no optimizer.
    """

    def __init__(self, optimizer, name=None):
        inner = keras.optimizers.get(optimizer)
        super().__init__(learning_rate=0.0, name=name)
        # The name that Keras's own LossScaleOptimizer has for it, and that its callbacks look for.
        self.inner_optimizer = inner

    def transform_gradients(self, gradients, variables):
        """Returns the gradients for the inner optimizer.

        Args:
            gradients: List of tensors; `None` where the loss does not depend on a variable.
            variables: List of variables.
        """
        return gradients

    def after_update(self, variables):
        """Acts on the updated variables."""

    def build(self, variables):
        # One that has trained before keeps its moments.
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def innermost(self):
        """The optimizer that does the update, past all wrappers."""
        optimizer = self.inner_optimizer
        while hasattr(optimizer, "inner_optimizer"):
            optimizer = optimizer.inner_optimizer
        return optimizer

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is None:
            variables = self._trainable_variables
        else:
            variables = list(trainable_variables)
            if not self.built:
                self.build(variables)
        grads = self.transform_gradients(list(grads), variables)
        self.inner_optimizer.apply(grads, variables)
        self.after_update(variables)

    def apply_gradients(self, grads_and_vars):
        super().apply_gradients(grads_and_vars)
        return self.innermost._iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self):
        # The other arguments of keras.optimizers.Optimizer are the inner optimizer's.
        return {
            "optimizer": keras.optimizers.serialize(self.inner_optimizer),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["optimizer"] = keras.optimizers.deserialize(config["optimizer"], custom_objects)
        return cls(**config)

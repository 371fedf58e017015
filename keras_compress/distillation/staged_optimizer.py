"""Optimizers for a part of the weights at a time."""

import keras

from keras_compress.optimizers.wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_compress")
class StagedOptimizer(OptimizerWrapper):
    """Leaves frozen weights out of the update of another optimizer.

    Their gradient does not reach it, whatever it is: so neither weight decay nor momentum moves
    them, on any backend, and the norm of the gradients that it may clip by is of the others.

    Args:
        optimizer: The optimizer to wrap.
        name: Name of the wrapper.
    """

    def __init__(self, optimizer, name=None):
        super().__init__(optimizer, name)
        self.frozen = frozenset()

    def apply(self, grads, trainable_variables=None):
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            self.build(variables)
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(grads, variables, strict=True)
            if id(variable) not in self.frozen
        ]
        if pairs:
            self.inner_optimizer.apply(*map(list, zip(*pairs, strict=True)))


@keras.saving.register_keras_serializable(package="keras_compress")
class OptimizerGroup(OptimizerWrapper):
    """Several optimizers in one step: the main one, and others for weights of their own.

    Learning rate and iterations are the main one's. Give the others their weights by `assign_to`
    before the first step.

    Args:
        optimizer: The main optimizer: of all weights that no other one has.
        others: List of further optimizers.
        name: Name of the group.
    """

    def __init__(self, optimizer, others=(), name=None):
        super().__init__(optimizer, name)
        self.others = [keras.optimizers.get(other) for other in others]
        self._owners = {}

    def assign_to(self, index, variables):
        """Gives weights to one of the other optimizers.

        Args:
            index: Its place in `others`.
            variables: List of variables.
        """
        self._owners.update({id(variable): index for variable in variables})

    def _split(self, variables):
        parts = [[] for _ in range(len(self.others) + 1)]
        for place, variable in enumerate(variables):
            parts[self._owners.get(id(variable), -1) + 1].append(place)
        return zip([self.inner_optimizer, *self.others], parts, strict=True)

    def build(self, variables):
        for optimizer, places in self._split(variables):
            if not optimizer.built:
                optimizer.build([variables[i] for i in places])
        super().build(variables)

    @property
    def variables(self):
        return super().variables + [v for other in self.others for v in other.variables]

    def apply(self, grads, trainable_variables=None):
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            self.build(variables)
        for optimizer, places in self._split(variables):
            if places:
                optimizer.apply([grads[i] for i in places], [variables[i] for i in places])

    def finalize_variable_values(self, var_list):
        for optimizer, places in self._split(var_list):
            optimizer.finalize_variable_values([var_list[i] for i in places])

    def get_config(self):
        others = [keras.optimizers.serialize(other) for other in self.others]
        return {**super().get_config(), "others": others}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        others = [keras.optimizers.deserialize(o, custom_objects) for o in config["others"]]
        return super().from_config({**config, "others": others}, custom_objects)

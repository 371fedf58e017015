"""`remove_dead`: neurons and filters that pruning left without inputs or outputs."""

from keras_compress.convert import check_graph
from keras_compress.pruning.dead_channels import without_dead_channels
from keras_compress.pruning.prune_channels import refuse_masked


def remove_dead(model):
    """Removes dead neurons and filters of a pruned model: the outputs stay.

    Dead is a channel that no later weight but zeros reads, or one that is the same for every input,
    such as a neuron whose own weights are all zero. A constant that is not zero (the bias, after
    activation, batch normalisation and pooling) is added to the biases of the layers that read it;
    where that cannot be exact (a convolution that pads with zeros), it stays. What goes leaves
    others without readers: the search goes on until nothing more is found. Of every layer one
    channel stays.

    Products of zeros go, so that outputs are equal to the last bit where sums are (a matrix product
    of another size may add in another order); constants move from a product to a bias.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed. A
            model under pruning masks goes through `kc.pruning.strip` first.

    Returns:
        A new model of the same layers, compiled like `model` if that is; a copy if nothing is dead.

    Raises:
        ValueError: if the model has no graph or is under a pruning mask.

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient
        Neural Networks", 2015, section 3.4.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(6, activation="relu", name="hidden"),
    ...     keras.layers.Dense(2),
    ... ])
    >>> kernel, bias = model.layers[0].get_weights()
    >>> kernel[:, :3] = 0.0
    >>> model.layers[0].set_weights([kernel, bias])
    >>> kc.pruning.remove_dead(model).get_layer("hidden").units
    3
    """
    check_graph(model, "remove_dead")
    refuse_masked(model, "remove_dead")
    return without_dead_channels(model)

"""`GuidedSparsity`: prunes only the layers in which zeros make the model faster."""

from keras_compress import matching, validation
from keras_compress.call_graph import CallGraph
from keras_compress.callbacks.magnitude_pruning import MagnitudePruning
from keras_compress.convert import check_graph
from keras_compress.pruning import schedules
from keras_compress.sparse.cost_model import cost_model, measure_machine
from keras_compress.sparse.sparse_model import KERNELS
from keras_compress.tables import Table


class GuidedSparsity(MagnitudePruning):
    """`MagnitudePruning` of the layers for which a cost model says that sparsity pays.

    A layer whose sparse kernel would be no faster at the schedule's final sparsity than the dense
    one (a small one, one bound by memory) is left dense: zeros there would cost accuracy and buy
    nothing. What is pruned runs by `kc.sparse.compile(model)`.

    Args:
        model: The built model that will be fitted: Sequential or functional, of fixed input sizes.
        schedule: Object of `kc.pruning` that knows its final sparsity; see `MagnitudePruning`.
        min_speedup: A layer is pruned if its sparse kernel is more than so many times faster.
        layers: Keys (layer name, glob, class or predicate) of the layers to ask about; by default
            every trainable Dense and Conv2D layer.
        batch_size: Samples that go through at once in inference.
        machine: The `kc.sparse.Machine` that the model will run on; by default this one, measured.

    Attributes:
        costs: Dict from the name of each layer asked about to its `kc.sparse.LayerCost`.
        refused: Names of the layers that stay dense.

    Raises:
        ValueError: if the model has no graph, the schedule tells no final sparsity, or sparsity
            pays in no layer.

    Reference:
        Park, Li, Wen, Tang, Li, Chen, Dubey, "Faster CNNs with Direct Sparse Convolutions and
        Guided Pruning", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((2048,)),
    ...     keras.layers.Dense(1024, name="fc1"),
    ...     keras.layers.Dense(4, name="fc2"),
    ... ])
    >>> pruning = kc.callbacks.GuidedSparsity(
    ...     model,
    ...     kc.pruning.PolynomialDecay(0.0, 0.95, begin_step=0, end_step=100),
    ...     machine=kc.sparse.Machine(50e9, 8e9, 2e-9, 20e9),
    ... )
    >>> pruning.refused
    ['fc2']
    """

    def __init__(
        self, model, schedule, *, min_speedup=1.0, layers=None, batch_size=8, machine=None
    ):
        check_graph(model, "GuidedSparsity")
        schedule = schedules.get(schedule)
        sparsity = getattr(schedule, "final_sparsity", None)
        if sparsity is None:
            raise ValueError(
                "GuidedSparsity: the cost model needs the sparsity at which the schedule ends; "
                f"got schedule={schedule!r}. Give an object of kc.pruning, PolynomialDecay for "
                "example."
            )
        least = validation.number("min_speedup", min_speedup, 0, owner=self)
        machine = measure_machine() if machine is None else machine
        chosen = matching.with_form(
            model,
            layers,
            lambda layer: type(layer) in KERNELS and layer.trainable,
            "a sparse kernel: a trainable Dense, Conv2D",
            "GuidedSparsity",
        )
        shapes = {}
        for call in CallGraph(model).calls:
            shapes.setdefault(id(call.operation), call.inputs[0].shape if call.inputs else None)
        self.costs = {
            layer.name: cost_model(
                layer,
                float(sparsity),
                input_shape=shapes[id(layer)],
                batch_size=batch_size,
                machine=machine,
            )
            for layer in chosen
        }
        paying = [layer for layer in chosen if self.costs[layer.name].speedup > least]
        self.refused = [layer.name for layer in chosen if layer not in paying]
        if not paying:
            raise ValueError(
                f"GuidedSparsity: at a sparsity of {float(sparsity):g} no layer would be more than "
                f"{least:g} times faster:\n{self.table()}\nRaise the schedule's final sparsity, or "
                "leave the model dense."
            )
        super().__init__(schedule, layers=paying)

    def table(self):
        """What the cost model says of each layer, and what is pruned, as a `Table`."""
        rows = [
            [
                name,
                f"{cost.lower:.1%}" if cost.lower < 1 else "never",
                f"{cost.upper:.1%}",
                f"{cost.speedup:.2f}x",
                "dense" if name in self.refused else "pruned",
            ]
            for name, cost in self.costs.items()
        ]
        return Table(["layer", "pays from", "memory rules from", "faster", "stays"], rows)

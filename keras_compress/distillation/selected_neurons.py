"""SelectedNeurons: the student's layer regresses chosen neurons of the teacher's."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.distillation.hint import Hint


@keras.saving.register_keras_serializable(package="keras_compress")
class SelectedNeurons(Hint):
    """`1/2 || teacher[neurons] - student ||^2`, mean of the batch: a `Hint` of chosen channels.

    Args:
        teacher_layer_name: Name of the teacher's layer; `None`: its output.
        student_layer_name: Name of the student's layer, with as many channels as there are
            `neurons` unless an adapter leads there; `None`: its output.
        neurons: Indices of the teacher's channels, as `kc.distillation.select_neurons` gives them.
        adapter: See `FeatureLoss`.

    Raises:
        ValueError: see `FeatureLoss`; also for indices that the layer does not have.

    Reference:
        P. Luo, Z. Zhu, Z. Liu, X. Wang, X. Tang, "Face Model Compression by Distilling Knowledge
        from Neurons", 2016.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> loss = kc.distillation.SelectedNeurons("top", "top", neurons=[2, 0])
    >>> float(loss.compute_loss(np.array([[1.0, 50.0, 2.0]]), np.array([[2.0, 0.0]])))
    0.5
    """

    def __init__(
        self, teacher_layer_name=None, student_layer_name=None, neurons=None, adapter="auto"
    ):
        super().__init__(teacher_layer_name, student_layer_name, adapter)
        indices = np.asarray([] if neurons is None else neurons)
        whole = indices.ndim == 1 and indices.size and np.issubdtype(indices.dtype, np.integer)
        if not whole or indices.min() < 0 or len(np.unique(indices)) < indices.size:
            raise ValueError(
                f"{validation.prefix(self)}`neurons` must be a sequence of at least one channel "
                f"index >= 0, none twice, as select_neurons gives it; got neurons={neurons!r}."
            )
        self.neurons = indices.tolist()

    def distance(self, teacher, student):
        return super().distance(ops.take(teacher, self.neurons, axis=-1), student)

    def make_adapter(self, teacher_shape, student_shape):
        return super().make_adapter(self._selected(teacher_shape), student_shape)

    def validate_outputs(self, teacher_outputs, student_outputs):
        self.check_shapes(self._selected(teacher_outputs.shape), student_outputs.shape)

    def _selected(self, shape):
        if max(self.neurons) >= shape[-1]:
            raise ValueError(
                f"{validation.prefix(self)}`neurons` must be below {shape[-1]}, the channels of "
                f"teacher layer {self.teacher_layer_name!r}; got {max(self.neurons)}."
            )
        return (*shape[:-1], len(self.neurons))

    def get_config(self):
        return {**super().get_config(), "neurons": self.neurons}

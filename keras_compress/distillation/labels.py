"""Samples without a label: no hard loss, and no part in its mean or in a metric."""

import math

import keras
from keras import ops, tree

from keras_compress import validation


def check_unlabeled(value, owner):
    """Returns the mark of samples without a label, a number (NaN too) or `None`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return value
    return validation.number("unlabeled", value, owner=owner)


def labelled(y, y_pred, mark):
    """Labels and outputs in which the samples without a label are masked.

    Args:
        y: Labels, a tensor or a structure of them. A label of several numbers is missing if all of
            them are the mark; if any is, for NaN.
        y_pred: Outputs of the same structure.
        mark: What stands for a missing label.

    Returns:
        Tuple of labels without marks, outputs with masks as of `keras.layers.Masking`, and the
        number of labels.
    """
    flat, outputs = tree.flatten(y), tree.flatten(y_pred)
    if len(flat) != len(outputs):
        raise ValueError(
            "Distiller: with `unlabeled`, there must be labels for each output of the student; got "
            f"{len(flat)} for {len(outputs)}."
        )
    cleaned, masked, counts = [], [], []
    for label, output in zip(flat, outputs, strict=True):
        label = ops.convert_to_tensor(label)
        if isinstance(mark, float) and math.isnan(mark):
            here = ops.logical_not(ops.isnan(label))
            missing = ops.logical_not(here)
            mask = ops.all(here, axis=-1) if len(label.shape) == len(output.shape) else here
        else:
            missing = ops.equal(label, ops.cast(mark, label.dtype))
            here = ops.logical_not(missing)
            mask = ops.any(here, axis=-1) if len(label.shape) == len(output.shape) else here
        cleaned.append(ops.where(missing, ops.zeros_like(label), label))
        masked.append(_Mask()([output, mask]))
        counts.append(ops.sum(ops.cast(mask, "int32")))
    return (
        tree.pack_sequence_as(y, cleaned),
        tree.pack_sequence_as(y_pred, masked),
        counts[0],
    )


class _Mask(keras.layers.Layer):
    """Gives its first input with the second one as its mask, as `keras.layers.Masking` does."""

    def __init__(self):
        super().__init__(autocast=False, name="labelled")
        self.supports_masking = True

    def call(self, inputs):
        # A new tensor: the distillation losses and the user's code see the other one too.
        return ops.copy(inputs[0])

    def compute_mask(self, inputs, previous_mask=None):
        before = None if previous_mask is None else previous_mask[0]
        return inputs[1] if before is None else ops.logical_and(before, inputs[1])

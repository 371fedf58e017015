"""Markers: products that pass through the converter as custom operations, weights left behind.

A layer whose kernel the .tflite shall store in another form is traced with its product replaced by
a function that the converter turns into one custom operation of a name of its own. The operation
keeps its place in the graph whatever the converter fuses around it, so that the writer knows by
construction which weights belong there; and the dense kernel never goes through the converter.
"""

import re

#: Name of the custom operation of the n-th stored kernel.
NAME = "keras_compress.stored.{}"
_PATTERN = re.compile(re.escape(NAME).replace(r"\{\}", r"(\d+)"))


def mark(layer, number):
    """Makes a layer's `multiply` a marker: for an export form that is about to be traced."""
    layer.multiply = marked(layer.multiply, number)


def number_of(custom_code):
    """The number in the name of a custom operation, or `None` if it is no marker."""
    match = _PATTERN.fullmatch(custom_code or "")
    return match and int(match.group(1))


def marked(multiply, number):
    """A function `(inputs, kernel)` that is traced as the custom operation of a number.

    Args:
        multiply: The product that it stands for; only its shapes are used.
        number: Number of the stored kernel.
    """
    import tensorflow as tf

    # What the converter's PrepareCompositeFunctions pass looks for.
    implements = (
        f'name: "{NAME.format(number)}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}'
    )

    def product(inputs, kernel):
        # Only the shape of the output counts, so one output channel of ones stands for all.
        thin = (*kernel.shape[:-1], 1)
        repeats = [1] * (len(inputs.shape) - 1) + [int(kernel.shape[-1])]

        @tf.function(autograph=False, experimental_implements=implements)
        def stand_in(x):
            return tf.tile(multiply(x, tf.ones(thin, x.dtype)), repeats)

        return stand_in(inputs)

    return product

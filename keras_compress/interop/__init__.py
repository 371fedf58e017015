"""Models from other libraries.

`tf_keras` and TensorFlow are only imported where a model of theirs is at hand.
"""

from keras_compress.interop.from_tf_keras import from_tf_keras

__all__ = ["from_tf_keras"]

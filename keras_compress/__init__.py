"""keras_compress: model compression for Keras 3 that pays off in the exported .tflite."""

__version__ = "0.1.0"

"""Export to .tflite: `kc.export`."""

from keras_compress.export.lite_model import LiteModel
from keras_compress.export.tflite import to_tflite
from keras_compress.export.timing import Timing, time_together

__all__ = ["LiteModel", "Timing", "time_together", "to_tflite"]

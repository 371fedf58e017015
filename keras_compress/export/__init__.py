"""Export to .tflite: `kc.export`."""

from keras_compress.export.bundle import bundle
from keras_compress.export.lite_model import LiteModel
from keras_compress.export.report import LayerRow
from keras_compress.export.tflite import to_tflite
from keras_compress.export.timing import Timing, time_together

__all__ = ["LayerRow", "LiteModel", "Timing", "bundle", "time_together", "to_tflite"]

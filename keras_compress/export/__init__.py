"""Export to .tflite: `kc.export`."""

from keras_compress.export.archive_format import ArchiveError
from keras_compress.export.archive_reader import archive_to_tflite, load_archive
from keras_compress.export.archive_writer import Archive, save_archive
from keras_compress.export.bundle import bundle
from keras_compress.export.lite_model import LiteModel
from keras_compress.export.report import LayerRow
from keras_compress.export.tflite import to_tflite
from keras_compress.export.timing import Timing, time_together

__all__ = [
    "Archive",
    "ArchiveError",
    "LayerRow",
    "LiteModel",
    "Timing",
    "archive_to_tflite",
    "bundle",
    "load_archive",
    "save_archive",
    "time_together",
    "to_tflite",
]

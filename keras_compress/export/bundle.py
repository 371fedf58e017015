"""`bundle`: a .tflite with a card that says what it is, as plain JSON."""

import datetime
import hashlib
import importlib.metadata
import inspect
import io
import json
import os
import pathlib
import platform
import sys
import zipfile

import keras

from keras_compress import validation
from keras_compress.export.calibration import flatten_inputs
from keras_compress.export.modes import described
from keras_compress.export.report import layer_rows
from keras_compress.export.structure import input_names, layer_paths
from keras_compress.export.tflite import to_tflite
from keras_compress.files import write_atomically, write_folder_atomically
from keras_compress.layers import CompressedLayer

FORMAT = "keras_compress.card"
FORMAT_VERSION = 1

MODEL_FILE = "model.tflite"
CARD_FILE = "card.json"


def bundle(
    model,
    path,
    data=None,
    metric="accuracy",
    quantize=None,
    calibration=None,
    batch_size=1,
    storage="auto",
    optimize_for="latency",
    runs=50,
    threads=1,
):
    """Exports a model and writes it with a card: what it is, what it costs, where it comes from.

    The bundle holds `model.tflite` and `card.json`, which any JSON reader reads. The card has:

    - `format`, `format_version`: `"keras_compress.card"` and 1;
    - `name`, `created` (UTC, ISO 8601), `file`, `sha256`: of the .tflite;
    - `inputs`, `outputs`: a list each of `name`, `shape` (`null` for an open axis) and `dtype`, as
      in the file's signature;
    - `metrics`: `accuracy` (of the .tflite on `data`, with `metric` and `samples`; `null` without
      data), `bytes`, `gzip_bytes`, `parameters`, `storage_bits`, `macs` of one sample (`null` if an
      axis is open), `max_error` to Keras relative to the largest output (`null` if not compared);
    - `latency`: `median_us` of one call, `batch_size` (`null` if open: measured at 1), `runs`,
      `threads`, and the `machine` it was measured on;
    - `layers`: a list of `layer`, `stored_as`, `float32_bytes`, `bytes`, `runs_as`, `time_share`;
    - `provenance`: `compression` (the layers of `kc.layers` in the model, with their arguments),
      `export` (the arguments of this call) and `versions`.

    Args:
        model: A built Keras model, as for `to_tflite`.
        path: A `.zip` file, which is replaced if there is one, or a folder, which must not exist or
            be empty. Written whole or not at all.
        data: `(x, y)` to measure accuracy on, or `None`.
        metric: `"accuracy"` or a function `(y_true, y_pred) -> float`.
        quantize: See `to_tflite`.
        calibration: See `to_tflite`.
        batch_size: See `to_tflite`.
        storage: See `to_tflite`.
        optimize_for: See `to_tflite`.
        runs: Timed rounds.
        threads: Threads of the interpreter that is timed.

    Returns:
        The card, as `json.load` reads it.

    Raises:
        ValueError: as `to_tflite` does, or if there is a folder that is not empty at `path`, or
            `metric` does not fit the outputs.

    Example:

    >>> import pathlib, tempfile
    >>> import keras
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)], name="tiny")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     card = bundle(model, pathlib.Path(folder, "tiny.zip"))
    >>> card["name"], card["metrics"]["macs"]
    ('tiny', 640)
    """
    # Up the floors, so only here.
    from keras_compress.profile import compare, storage_bits

    path = _checked(path)
    validation.positive_int("runs", runs, "bundle")
    validation.positive_int("threads", threads, "bundle")
    arguments = {
        "quantize": quantize,
        "batch_size": batch_size,
        "storage": storage,
        "optimize_for": optimize_for,
    }
    lite = to_tflite(model, calibration=calibration, **arguments)
    if data is not None:
        data = _by_name(model, data)
    # Without its Keras model, so that nothing is counted there that an open axis forbids.
    measured = compare(
        {lite.name: type(lite)(lite.content)}, data, metric, runs, threads, verbose=False
    )[lite.name]
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": model.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "file": MODEL_FILE,
        "sha256": hashlib.sha256(lite.content).hexdigest(),
        "inputs": lite.signature("input"),
        "outputs": lite.signature("output"),
        "metrics": {
            "accuracy": measured.accuracy,
            "metric": None if data is None else getattr(metric, "__name__", str(metric)),
            "samples": None if data is None else len(data[1]),
            "bytes": lite.nbytes,
            "gzip_bytes": lite.gzip_bytes,
            "parameters": model.count_params(),
            "storage_bits": storage_bits(model),
            "macs": _macs(model),
            "max_error": lite.max_error,
        },
        "latency": {
            "median_us": measured.latency_us,
            "batch_size": batch_size,
            "runs": runs,
            "threads": threads,
            "machine": _machine(),
        },
        "layers": [
            {
                "layer": row.layer,
                "stored_as": row.form,
                "float32_bytes": row.dense_bytes,
                "bytes": row.nbytes,
                "runs_as": row.operation,
                "time_share": row.share,
            }
            for row in layer_rows(lite, min(runs, 20), threads)
        ],
        "provenance": {
            "compression": _compression(model),
            "export": {
                **arguments,
                "quantize": described(quantize),
                "calibration": calibration is not None,
            },
            "versions": _versions(),
        },
    }
    written = _to_json(card)
    _write(path, {MODEL_FILE: lite.content, CARD_FILE: written})
    return json.loads(written)


def _checked(path):
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"bundle: there is no folder '{path.parent}' to write {path} in.")
    if path.suffix == ".zip":
        if path.is_dir():
            raise ValueError(f"bundle: `path` must be a .zip file; {path} is a folder.")
    elif path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            f"bundle: there is something at '{path}' already. Remove it, or give another folder, "
            "or a .zip file (which is replaced)."
        )
    return path


def _by_name(model, data):
    """`(x, y)` with `x` as a dict by the names of the signature."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError("bundle: `data` must be a pair (x, y).")
    x, y = data
    return dict(zip(input_names(model), flatten_inputs(model, x, "data"), strict=True)), y


def _to_json(card):
    # Arguments of layers may be numpy's.
    text = json.dumps(card, indent=2, allow_nan=False, default=lambda value: value.tolist())
    return f"{text}\n".encode()


def _write(path, files):
    if path.suffix != ".zip":
        write_folder_atomically(path, files)
        return
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    write_atomically(path, content.getbuffer())


def _macs(model):
    from keras_compress.profile import macs

    try:
        return macs(model)
    except ValueError:
        # A shape is open: the count depends on it.
        return None


def _compression(model):
    """The compressed layers of a model, with the arguments that their stock layers lack."""
    steps = []
    for path, layer in layer_paths(model):
        if isinstance(layer, CompressedLayer):
            stock = {"name", "trainable", "dtype", *inspect.signature(layer.source).parameters}
            own = {k: v for k, v in layer.get_config().items() if k not in stock}
            steps.append(
                {
                    "layer": path,
                    "class": type(layer).__name__,
                    "replaces": layer.source.__name__,
                    "arguments": own,
                }
            )
    return steps


def _machine():
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor():
    # platform.processor() is empty on many Linux systems.
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions():
    import tensorflow as tf

    import keras_compress

    return {
        "keras_compress": keras_compress.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "ai_edge_litert": importlib.metadata.version("ai-edge-litert"),
        "python": ".".join(map(str, sys.version_info[:3])),
    }

"""Every distillation method on the same digits, teacher and student, and the cost of a step.

    python benchmarks/distillation.py [--seeds 5] [--only KEY ...] [--teachers FOLDER] [--validate]

500 labels for the student. `--only` takes keys of METHODS, and `step`; what is not run keeps its
result of an earlier run. `--validate` is how weights were chosen: other seeds, and training
pictures that the student does not see in place of the test pictures.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import FOLDER, publish
from keras import layers

import keras_compress as kc
from keras_compress import distillation as kd
from keras_compress.tables import Table

BATCH, EPOCHS, RATE = 64, 6, 3e-3
LABELLED, UNLABELLED, HELD_OUT = 500, 4000, 2000
#: How often the labelled pictures come in an epoch, beside the others and on their own.
REPEATS, REPEATS_ALONE = 4, 12
#: First of the seeds of `--validate`; those reported begin at 0.
VALIDATION_SEED = 100


# Networks.


def conv(x, filters, strides=1, size=3, name=None):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU(name=name)(x)


def head(inputs, x, name, classes):
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def make_teacher(name="teacher", classes=10):
    """Wide inside its blocks, whose outputs are as large as the student's."""
    inputs = keras.Input((28, 28, 1))
    x = conv(conv(inputs, 32, 2, 5), 8, size=1, name="block1")
    for i, wide, filters in ((2, 48, 16), (3, 96, 32)):
        x = conv(layers.MaxPooling2D()(conv(x, wide)), filters, size=1, name=f"block{i}")
    x = layers.Dense(128, activation="relu", name="embedding")(layers.Flatten()(x))
    return head(inputs, x, name, classes)


def make_student(name="student", classes=10):
    inputs = keras.Input((28, 28, 1))
    x = conv(inputs, 8, 2, 5, name="block1")
    for i, filters in ((2, 16), (3, 32)):
        x = layers.MaxPooling2D(name=f"block{i}")(conv(x, filters))
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return head(inputs, x, name, classes)


def compiled(model, steps, rate=RATE):
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def fit(model, x, y=None, epochs=EPOCHS, rate=RATE):
    """Trains a model or a distiller in place by Adam, its rate falling to 0; returns it."""
    pictures = x["student"] if isinstance(x, dict) else x
    compiled(model, epochs * -(-len(pictures) // BATCH), rate)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def copy(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new

"""Distillation: a small student trained on a large teacher, on top of `keras.distillation`."""

from keras_compress.distillation.attention_transfer import AttentionTransfer
from keras_compress.distillation.distiller import Distiller
from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.hint import Hint
from keras_compress.distillation.logits_distillation import LogitsDistillation

__all__ = ["AttentionTransfer", "Distiller", "FeatureLoss", "Hint", "LogitsDistillation"]

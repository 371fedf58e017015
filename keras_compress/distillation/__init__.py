"""Distillation: a small student trained on a large teacher, on top of `keras.distillation`."""

from keras_compress.distillation.adversarial_distiller import AdversarialDistiller
from keras_compress.distillation.apprentice import Apprentice
from keras_compress.distillation.attention_transfer import AttentionTransfer
from keras_compress.distillation.beam_search import beam_search
from keras_compress.distillation.cache import TeacherCache, cache_teacher
from keras_compress.distillation.dark_rank import DarkRank
from keras_compress.distillation.distiller import Distiller
from keras_compress.distillation.ensemble import Ensemble
from keras_compress.distillation.feature_loss import FeatureLoss
from keras_compress.distillation.fsp import FSP
from keras_compress.distillation.hint import Hint
from keras_compress.distillation.knowledge_projection import KnowledgeProjection
from keras_compress.distillation.learning_without_forgetting import LearningWithoutForgetting
from keras_compress.distillation.logit_regression import LogitRegression
from keras_compress.distillation.logits_distillation import LogitsDistillation
from keras_compress.distillation.metadata import Metadata, record_metadata
from keras_compress.distillation.model_loss import Batch, ModelLoss
from keras_compress.distillation.moonshine import moonshine
from keras_compress.distillation.munge import munge
from keras_compress.distillation.net2deeper import net2deeper
from keras_compress.distillation.net2wider import net2wider
from keras_compress.distillation.neuron_selectivity import NeuronSelectivity
from keras_compress.distillation.noisy_teacher import NoisyTeacher
from keras_compress.distillation.proposal_mimic import ProposalMimic
from keras_compress.distillation.rocket_launching import RocketLaunching
from keras_compress.distillation.select_neurons import select_neurons
from keras_compress.distillation.selected_neurons import SelectedNeurons
from keras_compress.distillation.sequence_level import SequenceLevel
from keras_compress.distillation.sobolev import Sobolev
from keras_compress.distillation.specialists import Specialists
from keras_compress.distillation.stage import Stage
from keras_compress.distillation.staged_optimizer import OptimizerGroup
from keras_compress.distillation.synthesize import synthesize

__all__ = [
    "AdversarialDistiller",
    "Apprentice",
    "AttentionTransfer",
    "Batch",
    "DarkRank",
    "Distiller",
    "Ensemble",
    "FSP",
    "FeatureLoss",
    "Hint",
    "KnowledgeProjection",
    "LearningWithoutForgetting",
    "LogitRegression",
    "LogitsDistillation",
    "Metadata",
    "ModelLoss",
    "NeuronSelectivity",
    "NoisyTeacher",
    "OptimizerGroup",
    "ProposalMimic",
    "RocketLaunching",
    "SelectedNeurons",
    "SequenceLevel",
    "Sobolev",
    "Specialists",
    "Stage",
    "moonshine",
    "TeacherCache",
    "beam_search",
    "cache_teacher",
    "munge",
    "net2deeper",
    "net2wider",
    "record_metadata",
    "select_neurons",
    "synthesize",
]

"""Memories: what is kept over the steps, with the whole of their state in buffers."""

from nnunet_dvcl.memory.class_bank import ClassBank
from nnunet_dvcl.memory.class_difficulty import ClassDifficulty
from nnunet_dvcl.memory.class_statistics import ClassConfidence, ClassShares
from nnunet_dvcl.memory.feature_queue import FeatureQueue

__all__ = ["ClassBank", "ClassConfidence", "ClassDifficulty", "ClassShares", "FeatureQueue"]

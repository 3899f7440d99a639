"""Memories: ring buffers whose whole state, cursor included, is in buffers."""

from nnunet_dvcl.memory.class_bank import ClassBank
from nnunet_dvcl.memory.class_counts import ClassCounts
from nnunet_dvcl.memory.feature_queue import FeatureQueue

__all__ = ["ClassBank", "ClassCounts", "FeatureQueue"]

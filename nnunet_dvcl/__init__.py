"""Semi-supervised segmentation for nnU-Net v2: distance-aware voxel-wise contrastive learning (DVCL).

Imports nothing on purpose: the start-up hook of the installed package (``_register``) runs at every start of Python.
"""

__version__ = "0.1.0"

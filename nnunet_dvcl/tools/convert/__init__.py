"""The paper's four data sets: from the folders in which each is distributed to nnU-Net's raw format."""

from nnunet_dvcl.tools.convert.releases import RELEASES

__all__ = ["RELEASES"]

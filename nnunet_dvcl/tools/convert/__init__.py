"""The paper's four data sets: from the folders in which each is distributed to nnU-Net's raw format."""

from nnunet_dvcl.tools.convert.amos import AMOS
from nnunet_dvcl.tools.convert.btcv import BTCV
from nnunet_dvcl.tools.convert.flare22 import FLARE22
from nnunet_dvcl.tools.convert.mmwhs import MMWHS

RELEASES = {"flare22": FLARE22, "amos": AMOS, "mmwhs": MMWHS, "btcv": BTCV}
"""Data set, as the command line calls it -> what is known of it."""

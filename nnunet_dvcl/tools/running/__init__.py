"""nnU-Net's commands, run one after the other, and what they have done."""

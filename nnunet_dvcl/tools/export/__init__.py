"""A trained model as a folder that plain nnU-Net predicts from."""

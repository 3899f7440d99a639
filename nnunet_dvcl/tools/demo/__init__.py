"""`make demo`: a body phantom, trained with and without its unlabeled scans through nnU-Net's own commands."""

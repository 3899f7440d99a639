"""The pilot: a short cross-validation that says whether unlabeled scans help on a data set, before a long training."""

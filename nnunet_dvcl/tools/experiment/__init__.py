"""Experiments on a data set whose labels are known: how its cases are divided, run and compared."""

"""The commands of ``nnunet_dvcl``: one module each, with `add` to declare it and `run` to do it.

A module imports what it needs inside of `run`, so that ``--help`` is instant.
"""

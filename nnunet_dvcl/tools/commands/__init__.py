"""The commands of ``nnunet_dvcl``: each a function, declared with `declaring.command`.

A function imports what it needs when it runs, so that ``--help`` is instant.
"""

"""Tells nnU-Net where our trainers are, by nnU-Net's own environment variable.

``nnunet_dvcl.pth``, which is installed into site-packages, calls ``at_startup`` whenever Python starts there. Every
process of that environment pays for it: import nothing here that Python has not loaded anyway.
"""

import os
import sys

VARIABLE = "nnUNet_extTrainer"
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "discovery")


def register() -> None:
    """Append ``FOLDER`` to ``nnUNet_extTrainer``, after what the user has set there; once only.

    Child processes inherit the variable, those of another environment too: see ``discovery/nnunet_dvcl_trainers.py``.
    """
    value = os.environ.get(VARIABLE, "")
    if FOLDER not in value.split(os.pathsep):
        os.environ[VARIABLE] = f"{value}{os.pathsep}{FOLDER}" if value.strip() else FOLDER


def at_startup() -> None:
    """Register, then forget this package again.

    ``sys.path`` is not complete yet: kept in ``sys.modules``, the installed package would hide a checkout that the
    current folder puts before it.
    """
    register()
    for name in (__name__, __package__):
        sys.modules.pop(name, None)

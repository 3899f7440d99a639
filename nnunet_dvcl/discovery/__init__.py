"""The folder that nnU-Net's trainer finder is pointed at (``nnUNet_extTrainer``); see ``nnunet_dvcl._register``.

The finder imports every module in here under its bare name, looks for the class, and drops the module again. So there
is one module, its name is ours alone, and it defines nothing itself: a class defined here could not be pickled and
would be another object at each look-up.
"""

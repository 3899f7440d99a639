"""All trainers of ``nnunet_dvcl.trainers``, for nnU-Net's trainer finder."""

try:
    import nnunet_dvcl.trainers as _trainers
    from nnunet_dvcl.trainers import *  # noqa: F403
except ModuleNotFoundError as error:
    # A child process in another environment inherits nnUNet_extTrainer, but has no nnunet_dvcl: its own search for a
    # trainer must go on. (A plain folder named nnunet_dvcl on its path makes it the second name.)
    if error.name not in ("nnunet_dvcl", "nnunet_dvcl.trainers"):
        raise
else:

    def __getattr__(name: str):
        """A trainer that is made when it is asked for, such as nnUNetTrainerDVCL_20epochs; import * leaves it out."""
        try:
            return getattr(_trainers, name)
        except AttributeError:
            from nnunet_dvcl.endings import hint_behind
            from nnunet_dvcl.options import did_you_mean

            # The finder goes on, perhaps to where the trainer is: only where the search ends the process this is said.
            if meant := did_you_mean(name, _trainers.__all__):
                hint_behind(f"nnunet trainer {name} ", meant.strip())
            raise

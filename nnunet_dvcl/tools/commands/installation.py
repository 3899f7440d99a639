"""What is installed: ``nnunet_dvcl trainers`` and ``doctor``."""

from nnunet_dvcl.tools.commands.declaring import runs


@runs("trainers", "list every trainer, what it is and its source")
def trainers() -> None:
    from nnunet_dvcl import trainers

    for name in trainers.__all__:
        if name != "nnUNetTrainerSSL":  # the base of the methods does not train
            print(f"{name}\n    {getattr(trainers, name).__doc__.splitlines()[0]}")
    print("\nEach also trains for a number of epochs that its name gives, for instance nnUNetTrainerDVCL_20epochs.")


@runs("doctor", "check the installation, nnU-Net's folders and the device")
def doctor() -> int:
    from nnunet_dvcl.tools.doctor import main

    return main()

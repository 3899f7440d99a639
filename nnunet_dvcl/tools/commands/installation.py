"""What is installed, and whether it works: ``nnunet_dvcl demo``, ``trainers`` and ``doctor``."""

from nnunet_dvcl.tools.commands.declaring import argument, command
from nnunet_dvcl.tools.commands.shared import output_folder


@command(
    output_folder("./nnunet_dvcl_demo"),
    argument("--quick", action="store_true", help="a few iterations only: shows that everything runs"),
)
def demo(o: str, quick: bool) -> None:
    """Train and compare on a small body phantom, no data needed."""
    from nnunet_dvcl.tools.demo.run import run_demo

    run_demo(o, quick)


@command()
def trainers() -> None:
    """List every trainer, what it is and its source."""
    from nnunet_dvcl import trainers

    for name in trainers.__all__:
        if name != "nnUNetTrainerSSL":  # the base of the methods does not train
            print(f"{name}\n    {getattr(trainers, name).__doc__.splitlines()[0]}")
    print("\nEach also trains for a number of epochs that its name gives, for instance nnUNetTrainerDVCL_20epochs.")


@command()
def doctor() -> int:
    """Check the installation, nnU-Net's folders and the device."""
    from nnunet_dvcl.tools.doctor import main

    return main()

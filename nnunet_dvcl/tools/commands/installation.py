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
    """List every trainer, what it is, its source and what a step costs."""
    from nnunet_dvcl import trainers

    for name in trainers.__all__:
        if name != "nnUNetTrainerSSL":  # the base of the methods does not train
            trainer = getattr(trainers, name)
            print(f"{name}\n    {trainer.__doc__.splitlines()[0]}\n    {cost(trainer)}")
    print("\nEach also trains for a number of epochs that its name gives, for instance nnUNetTrainerDVCL_20epochs.")


def cost(trainer: type) -> str:
    """What a step of one of our trainers takes, with as many unlabeled patches as labeled ones."""
    passes = getattr(trainer, "passes", None)
    if passes is None:
        return "A step takes as long as nnU-Net's."
    runs = f"{passes.trained:g} trained" + (f" and {passes.forward:g} forward" if passes.forward else "")
    runs += " pass" if passes == (1, 0) else " passes"
    return f"A step takes about {passes.steps_of_nnunet:.1f} of nnU-Net's: {runs} over twice as many patches."


@command()
def doctor() -> int:
    """Check the installation, nnU-Net's folders and the device."""
    from nnunet_dvcl.tools.doctor import main

    return main()

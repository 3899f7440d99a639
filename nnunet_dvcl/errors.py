"""The one exception for what only the user can mend."""


class UserError(RuntimeError):
    """Bad input: the message names the thing, what was expected and how to mend it.

    The command line prints the message alone; through ``nnUNetv2_train`` it ends the run before any training time is
    spent.
    """

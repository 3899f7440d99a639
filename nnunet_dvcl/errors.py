"""The one exception for what only the user can mend."""


class UserError(RuntimeError):
    """Bad input: the message names the thing, what was expected and how to mend it.

    The command line prints the message alone, and so does ``nnUNetv2_train``, which it ends before any training time is
    spent.
    """

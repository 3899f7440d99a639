"""Commands print what they are asked for, not what they call."""

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """nnU-Net logs, its trainer finder tells its whole way, packages warn of each other; errors come through."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

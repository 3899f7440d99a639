"""The ramp of the consistency weight."""

import math


def gaussian_rampup(progress: float, fraction: float = 1.0) -> float:
    """w(t) = exp(-5 (1 - min(t/T, 1))²), the CPS weight ramp-up of DVCL (section 3.1) and UA-MT.

    Args:
        progress: t, the share of all training iterations that is done, in [0, 1].
        fraction: T, the share of training over which the weight rises; 0: no ramp.

    Returns:
        A weight between exp(-5) = 0.0067 and 1.
    """
    if fraction <= 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(progress / fraction, 1.0)) ** 2)

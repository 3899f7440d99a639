"""Seeds of the parts of a training, from the one that the user gives."""

import numpy as np


def derive_seed(seed: int, epoch: int = 0, rank: int = 0, network: int = 0, step: int = 0) -> int:
    """A seed for one rank, from an epoch on; for the weights of one network (0: A); or for one step, counted from 1.

    The seed itself where all are 0. Else one that no other seed of a user leads to: with sums, network B of seed 0
    would be A of seed 1, and runs with seeds 0, 1 and 2 would share networks.
    """
    if not any((epoch, rank, network, step)):
        return seed
    return int(np.random.SeedSequence([seed, epoch, rank, network, step]).generate_state(1, np.uint64)[0])

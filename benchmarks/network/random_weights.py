"""Networks with random weights and images of noise, for everything where the weights do not matter."""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray

from export.network.architecture import owner_network
from export.network.restormer import Restormer


def random_image(side: int, *, seed: int) -> NDArray[np.float32]:
    """Return noise ``[1, 3, side, side]`` in [0, 1]."""
    return np.random.default_rng(seed).random((1, 3, side, side), np.float32)


def standard_network() -> Restormer:
    """Return the network of the speed measurements: the owner's base with random weights."""
    torch.manual_seed(0)
    return randomize(Restormer(owner_network()).eval())


def randomize(network: Restormer) -> Restormer:
    """Give a new network random norms and temperatures, in place, and return it.

    They begin as ones and zeros, which a runtime takes out of the graph: a rewrite that spares them would be measured
    where there is nothing to spare.
    """
    for name, parameter in network.named_parameters():
        if re.search(r"norm[12]\.weight$|temperature$", name):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif re.search(r"norm[12]\.bias$", name):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return network

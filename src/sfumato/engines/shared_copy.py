"""A copy of a network with the same weights under modules of its own, which an engine may change."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shared_copy(network: Network) -> Network:
    """A copy of a network whose parameters and buffers are the network's own."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)

"""How a connection fails."""

from __future__ import annotations


class ConnectionLost(ConnectionError):
    """The connection has ended before both sides had said that they are done: the peer has died, the network is cut, or
    nothing was heard for longer than the heartbeat. What was under way may or may not have arrived."""


class ProtocolError(ConnectionLost):
    """The peer has sent something that is not part of the protocol, or more than it was allowed to."""


class HelloFailed(ConnectionError):
    """The connection was not established: the peer does not know the key, the key was used before, or the peer is
    something else."""

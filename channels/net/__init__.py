"""Channels over a TCP connection: one side listens with a key that is used once, the other side connects with it.

with net.Listener() as listener:                          with net.connect(address, key) as connection:
    ...  # hand listener.address and listener.key over         for value in connection.receiver:
    connection = listener.accept(timeout=10)                       ...
"""

from ._connection import Connection, Listener, connect
from ._errors import ConnectionLost, HelloFailed, ProtocolError
from ._lane import Codec, LaneReceiver, LaneSender

__all__ = [
    "Codec",
    "Connection",
    "ConnectionLost",
    "HelloFailed",
    "LaneReceiver",
    "LaneSender",
    "Listener",
    "ProtocolError",
    "connect",
]

for _name in __all__:  # repr, tracebacks, help and pickles show the name that users import
    globals()[_name].__module__ = __name__

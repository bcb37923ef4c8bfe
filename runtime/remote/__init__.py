"""Agents that run on other processes and machines, on the workers of an engine that people already have.

with ProcessPoolExecutor() as pool, Remote(pool.submit, "package.module:agent") as remote:
    for event in remote.run_stream(Session.from_user("Book a table")):
        ...
"""

from .._public import publish
from ._remote import Remote
from ._run import RemoteError
from ._stream import RemoteStream
from ._work import work

__all__ = ["Remote", "RemoteError", "RemoteStream", "work"]

publish(__name__, globals(), __all__)

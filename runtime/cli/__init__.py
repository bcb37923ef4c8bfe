"""The command ``lockgate``, on a terminal or without one."""

from ._command import main

__all__ = ["main"]

"""Assembles the tool calls of a reply from their pieces, as servers really send them.

In the protocols, the first piece of a call has its index, id and name, and further pieces have only the index. Servers
deviate from this: they send a new id or the name again in every piece; send the id late; use one index for all calls,
which then differ only by their ids, or only because one call is complete when the next begins; send no index; repeat
the whole call at the end; send the arguments as an object. `tests/runtime/toolcalls/test_assembler.py` has a table of
these cases.

In doubt, a piece belongs to the call before it. If that is wrong, the result is broken JSON, which is refused; the
opposite error would leave half a call, which could be made with default arguments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from channels._lazy import lazy

from ..foreign._arguments import WholeObject, to_text
from ..foreign._json import LONGEST
from ..model import ToolCallDelta
from ..session._message import ToolCall

if TYPE_CHECKING:
    import uuid
else:
    uuid = lazy("uuid")

# What a reply ends with that has come to its own end. After anything else, `length` above all, a call without arguments
# is one that was cut off before its first letter.
_ENDED: Final = (None, "", "stop", "tool_calls")
NOTHING: Final = ("", "null")


class _Call:
    """A call, as far as its pieces have arrived."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = ""
        self.given = ""  # the id that the model gave it last
        self.ids_change = False  # with every piece: they tell nothing
        self.begun = False  # whether there are arguments
        self.last: ToolCall | None = None  # the last piece, as the consumer is told of it
        self.size = 0
        self._pieces: list[str] = []
        self._object: WholeObject | None = None  # for `whole`, which few calls are asked
        self._looked_at = 0

    def add(self, arguments: str) -> None:
        if not self.begun and arguments.strip() in NOTHING:
            return
        if self._pieces == ["{}"] and arguments.lstrip().startswith("{"):  # which stood for what was to come
            self._pieces, self._object, self._looked_at = [], None, 0
        self.begun = True
        if self.size <= LONGEST:  # one that is longer is refused: nobody needs all of it
            self._pieces.append(arguments)
            self.size += len(arguments)

    @property
    def arguments(self) -> str:
        return "".join(self._pieces)

    def made(self, nothing: str) -> ToolCall:
        """The call, with ``nothing`` in the place of arguments that it has none of."""
        arguments, last = self.arguments if self.begun else nothing, self.last
        if last is not None and last.name == self.name and last.arguments == arguments:  # it came in one piece
            return last
        return ToolCall(self.id, self.name, arguments)

    @property
    def whole(self) -> bool:
        """Whether the arguments are a complete object. Used only if a piece may begin another call."""
        if self._object is None:
            self._object = WholeObject()
        for piece in self._pieces[self._looked_at :]:
            self._object.add(piece)
        self._looked_at = len(self._pieces)
        return self._object.whole

    def is_said_again(self, delta: ToolCallDelta, arguments: str) -> bool:
        """Whether the piece repeats the whole call."""
        again = delta.id != "" and delta.id == self.given and delta.name == self.name
        return again and len(arguments) == self.size > 0 and self.whole and arguments == self.arguments


class Assembler:
    """The calls of one reply. ``taken`` are the ids of the calls in the session, to which the ids of this reply are
    added.

    ``known`` are the names of the tools that the model has.
    """

    def __init__(self, taken: set[str], known: Iterable[str] = ()) -> None:
        self._taken = taken
        self._known = frozenset(known)
        self._calls: list[_Call] = []
        self._slots: dict[int | None, _Call] = {}
        self._ids: dict[str, _Call] = {}

    def add(self, delta: ToolCallDelta) -> ToolCall | None:
        """Take a piece. Returns the call that it belongs to, with what it adds to the arguments; None if the piece is
        empty."""
        arguments = to_text(delta.arguments)
        if not (delta.id or delta.name or arguments):
            return None
        call = self._find(delta, arguments)
        if call is None:
            call = _Call(self._new_id(delta.id))
            self._calls.append(call)
        elif call.is_said_again(delta, arguments):
            return None
        self._slots[delta.index] = call
        if delta.id:
            call.ids_change = call.ids_change or call.given not in ("", delta.id)
            call.given = delta.id
            self._ids[delta.id] = call
        if delta.name and not self._is_repeated(call.name, delta.name):
            call.name += delta.name
        call.add(arguments)
        call.last = ToolCall(call.id, call.name, arguments)
        return call.last

    def calls(self, finish: str | None) -> tuple[ToolCall, ...]:
        """The calls of a reply that ended with ``finish``. One whose arguments are blank, or null, has none: an empty
        object; not where the reply was cut off, as nobody knows then what would have been in it.
        """
        nothing = "{}" if finish in _ENDED else ""
        return tuple([each.made(nothing) for each in self._calls if each.name or each.begun])

    def _find(self, delta: ToolCallDelta, arguments: str) -> _Call | None:
        """The call that the piece continues, or None if it begins a call."""
        slot = self._slots.get(delta.index)
        call = self._ids.get(delta.id, slot) if delta.id else slot
        if call is None:
            last = self._calls[-1] if self._calls else None
            alone = not delta.id and not delta.name  # arguments alone begin nothing
            return last if alone and last is not None and not last.whole else None
        return None if self._begins(call, delta, arguments, at_new_index=slot is None) else call

    def _begins(self, call: _Call, delta: ToolCallDelta, arguments: str, *, at_new_index: bool) -> bool:
        """Whether the piece begins a call of its own, and does not go on with ``call``."""
        other_id = call.given not in ("", delta.id) and delta.id != "" and not call.ids_change
        if not delta.name:  # an id alone, whose name comes later; or one that changes with every piece
            return other_id and call.whole
        if not call.name:
            return other_id and call.begun
        if call.is_said_again(delta, arguments):
            return at_new_index
        other_name = not self._is_repeated(call.name, delta.name)
        if not call.begun:  # a name in pieces, or in every piece; or a call without arguments, and another
            return other_name and (other_id or self._are_two(call.name, delta.name))
        if call.whole:
            return other_name or other_id or at_new_index or arguments.strip() != ""
        return other_name

    def _is_repeated(self, name: str, piece: str) -> bool:
        """Whether the piece repeats the name, rather than being its second half."""
        return piece == name and (name in self._known or name + piece not in self._known)

    def _are_two(self, name: str, piece: str) -> bool:
        return name in self._known and piece in self._known and name + piece not in self._known

    def _new_id(self, given: str) -> str:
        id = given if given and given not in self._taken else f"call_{uuid.uuid4().hex[:16]}"
        self._taken.add(id)
        return id


def cut_off(call: ToolCall, finish: str | None) -> str:
    """Why a call is not made that the end of its reply has cut off, for the model to read; empty where it is whole."""
    if finish in _ENDED or not call.problem:
        return ""
    return (
        f"this call was not made: the reply ended ({finish}) before its arguments were whole;"
        " if they were too long, write less at once"
    )

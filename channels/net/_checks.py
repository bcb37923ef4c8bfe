"""Checks of the settings of `Listener` and `connect`: a wrong value is an error where it is given."""

from __future__ import annotations

from collections.abc import Sequence

from ._lane import Codec


def is_number(value: object) -> bool:
    """Whether it is a number, which True and NaN are not, that a float can be."""
    return (isinstance(value, float) and value == value) or (type(value) is int and abs(value) < 2**63)


def is_capacity(value: object) -> bool:
    """Whether it is the capacity of a lane: 0, a rendezvous, there is none over a network."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_name(whose: str, name: object) -> None:
    """Raise `TypeError` for what is no text."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a {whose} must be text, not {name!r:.200}")


def checked_codecs(codecs: object) -> list[Codec]:
    """The codec of each lane, one for JSON where None is given. Raises `TypeError`."""
    if codecs is None:
        return [Codec()]
    given = list(codecs) if isinstance(codecs, Sequence) else []
    if not given or not all(isinstance(one, Codec) for one in given):
        raise TypeError(f"codecs must be a sequence with a Codec for each lane, not {codecs!r:.200}")
    return given


def checked_capacities(capacities: object) -> list[tuple[int, int]]:
    """The capacities of each lane: to the peer, and from it. Raises `ValueError`."""
    lanes = capacities if isinstance(capacities, Sequence) else ()
    pairs = [tuple(each) if isinstance(each, (tuple, list)) else () for each in lanes]
    if not pairs or not all(len(pair) == 2 and all(is_capacity(each) for each in pair) for pair in pairs):
        raise ValueError(
            "capacities must be a sequence with two whole numbers, 1 or more, for each lane (to the peer, and from"
            f" it), not {capacities!r:.200}"
        )
    return [(pair[0], pair[1]) for pair in pairs]


def check_address(address: object) -> None:
    """Raise `TypeError` for what is no host with a port."""
    pair = tuple(address) if isinstance(address, (tuple, list)) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or isinstance(pair[1], bool) or not isinstance(pair[1], int):
        raise TypeError(f"address must be a host and a port, such as ('127.0.0.1', 0), not {address!r:.200}")

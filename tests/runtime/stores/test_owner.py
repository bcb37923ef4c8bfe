"""Whether the process that has a session's lease is surely gone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

from runtime.stores._owner import Owner
from support.waiting import eventually

PROGRAM = "import json; from runtime.stores._owner import Owner; print(json.dumps(Owner.here().to_dict()), flush=True)"


def test_a_process_is_gone_once_it_has_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{PROGRAM}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        owner = Owner.from_dict(json.loads(process.stdout.readline()))
        assert owner.pid == process.pid
        assert not owner.gone
        process.kill()
        assert eventually(lambda: owner.gone)  # nobody has waited for it yet
    assert owner.gone
    assert str(owner) == f"process {process.pid} on {owner.host}"


def test_another_process_of_the_same_number_is_not_it() -> None:
    here = Owner.here()
    assert not here.gone
    if here.started:  # where the system tells
        assert dataclasses.replace(here, started="1").gone


def test_a_process_elsewhere_is_never_surely_gone() -> None:
    """Two containers may have one host name, and a process of each number."""
    assert not dataclasses.replace(Owner.here(), machine="another", pid=2**30).gone

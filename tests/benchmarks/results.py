"""The figures of a benchmark in a file, to be held against those of another run by `compare.py`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path


def write(path: Path, benchmark: str, figures: Mapping[str, Sequence[float]], *, unit: str = "") -> None:
    """Add the figures to the file at ``path``, which is made where it is not there: by row, one of each round."""
    known = json.loads(path.read_text()) if path.exists() and path.stat().st_size else {}
    known["machine"] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    known.setdefault("rows", {})[benchmark] = {
        name: {"unit": unit, "values": list(values)} for name, values in figures.items()
    }
    path.write_text(json.dumps(known, indent=1) + "\n")

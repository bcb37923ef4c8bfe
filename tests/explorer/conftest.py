"""Puts `interleave` on the path, and says at the end how far the explorer went."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from interleave import reports


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not reports:
        return
    write = terminalreporter.write_line
    terminalreporter.section("interleavings")
    if terminalreporter.verbosity > 0:
        for report in reports:
            write(str(report))
    else:
        for report in reports:
            if not report.complete:
                write(str(report))
    write(
        f"explored {sum(r.schedules for r in reports)} schedules of {len(reports)} scenarios,"
        f" {sum(r.thrown for r in reports)} exceptions thrown, {sum(r.nested for r in reports)} operations nested,"
        f" {sum(r.steps for r in reports)} steps, {sum(r.seconds for r in reports):.0f} s"
    )

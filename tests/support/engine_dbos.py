"""The DBOS application of the tests: a worker, which has one job after the other from a queue in a database."""

from __future__ import annotations

import os
import threading
from typing import Any

from dbos import DBOS

from runtime.remote import work

NAME = "run_agent_once"
QUEUE = "agents"


@DBOS.step()
def run_agent(spec: dict[str, Any]) -> dict[str, Any]:
    """A job."""
    return work(spec)


@DBOS.workflow(name=NAME)
def run_agent_once(spec: dict[str, Any]) -> dict[str, Any]:
    """A workflow that is a job."""
    return run_agent(spec)


if __name__ == "__main__":
    database = os.environ["DBOS_DATABASE"]
    DBOS(config={"name": "tests", "system_database_url": database, "run_admin_server": False})
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=4, polling_interval_sec=0.1)
    print("ready", flush=True)
    threading.Event().wait()

"""The Celery application of the tests, for its workers and its callers."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from runtime.remote import work

app = Celery("engine", broker=os.environ.get("BROKER"), backend=os.environ.get("BROKER"))
# The settings that make Celery run a job again whose worker was killed: at most once is up to us, whatever they are.
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, broker_connection_retry_on_startup=True)


@app.task
def run(spec: dict[str, Any]) -> dict[str, Any]:
    """A job."""
    return work(spec)


@app.task
def tell(address: str, name: str, count: int) -> None:
    """Tell events by way of a list in Redis, for the benchmark."""
    from engines import to_redis

    to_redis(address, name, count)

"""Runs over encrypted connections: the same, and nobody without the right certificates has any part in them."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime import RunError, Session
from runtime.events import ElicitationRequest
from runtime.remote import Remote, work
from support.certificates import certificates
from support.remote_agents import Processes

AGENTS = "support.remote_agents"


def trusting() -> ssl.SSLContext:
    """What a worker imports."""
    return certificates().client()


def with_a_certificate() -> ssl.SSLContext:
    """What a worker imports whose caller wants to know it."""
    return certificates().client(path=certificates().here)


def broken() -> ssl.SSLContext:
    raise FileNotFoundError("no such certificate")


HERE = f"{__name__}:"


def test_a_run_in_another_process_is_asked_and_answered() -> None:
    """The worker trusts what its system trusts."""
    with Processes(SSL_CERT_FILE=str(certificates().authority.path)) as processes:
        remote = Remote(processes.submit, f"{AGENTS}:asks", ssl=certificates().server())
        session = Session.from_user("go")
        with remote, remote.run_stream(session) as stream:
            for event in stream:
                if isinstance(event, ElicitationRequest):
                    stream.respond(event, "accept", {"n": 3})
            assert stream.result().text.startswith("accept {'n': 3}")
        assert len(session.messages) == 4
        assert processes.outcome()["reason"] == "normal"


@pytest.mark.parametrize("context", ["trusting", "with_a_certificate"])
def test_a_worker_imports_its_context(context: str) -> None:
    made = certificates()
    here = made.server(wants=made.authority if context == "with_a_certificate" else None)
    with (
        ThreadPoolExecutor(2) as pool,
        Remote(pool.submit, f"{AGENTS}:many", ssl=here, worker_ssl=HERE + context) as remote,
    ):
        assert remote.run(Session.from_user("go")).text.endswith("999 ")
        assert [result.reason for _, result in remote.map(["a", "b", "c"])] == ["normal"] * 3
        with remote.run_stream(Session.from_user("go")) as stream:
            next(stream)
            stream.cancel()
            assert stream.reason in (None, "canceled")
            list(stream)
            assert stream.reason == "canceled"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "does not trust the certificate"),  # that of no authority of this system
        ({"worker_ssl": HERE + "broken"}, "no such certificate"),
        ({"worker_ssl": HERE + "nobody"}, "no attribute 'nobody'"),
        ({"worker_ssl": HERE + "AGENTS"}, "must be an ssl.SSLContext"),
        ({"worker_ssl": HERE + "trusting", "wants": True}, "wants a certificate"),
    ],
)
def test_a_worker_that_cannot_connect_says_why(settings: dict[str, Any], text: str) -> None:
    made, settings = certificates(), dict(settings)
    here = made.server(wants=made.authority if settings.pop("wants", False) else None)
    with (
        ThreadPoolExecutor(2) as pool,
        Remote(pool.submit, f"{AGENTS}:few", ssl=here, **settings) as remote,
        pytest.raises(RunError, match=text) as caught,
    ):
        remote.run(Session.from_user("go"))
    assert caught.value.code == "not_started"


def test_a_task_of_ones_own_has_the_context() -> None:
    """It connects with it, or not at all: also where the job does not ask for it."""
    with ThreadPoolExecutor(2) as pool:

        def submit(function: Any, spec: Any) -> Any:
            return pool.submit(work, spec, ssl=trusting())

        with Remote(submit, f"{AGENTS}:few", ssl=certificates().server()) as remote:
            assert remote.run(Session.from_user("go")).text == "0 1 2 "
        with Remote(submit, f"{AGENTS}:few") as remote, pytest.raises(RunError, match="does not use TLS"):
            remote.run(Session.from_user("go"))


def test_contexts_are_checked_where_they_are_given() -> None:
    with pytest.raises(ValueError, match="load_cert_chain"):
        Remote(print, f"{AGENTS}:few", ssl=certificates().client())
    with pytest.raises(TypeError, match="SSLContext"):
        Remote(print, f"{AGENTS}:few", ssl="certificate.pem")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs ssl="):
        Remote(print, f"{AGENTS}:few", worker_ssl=HERE + "trusting")
    with pytest.raises(ValueError, match="module"):
        Remote(print, f"{AGENTS}:few", ssl=certificates().server(), worker_ssl="trusting")

"""Certificates for TLS, made by the command `openssl` for one run of the tests."""

from __future__ import annotations

import functools
import ipaddress
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass
class Authority:
    """Signs certificates. ``path`` is the file that those load who trust it."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.path, self._key = self.directory / f"{self.name}.pem", self.directory / f"{self.name}.key"
        extensions = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # wanted by Python 3.13
        subject = ("-subj", f"/CN={self.name}", "-days", "2", *extensions)
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.path, *subject)

    def certificate(self, *hosts: str) -> Path:
        """A file with a certificate for these hosts, and its key."""
        path = self.directory / f"{self.name}-{'-'.join(hosts)}"
        key, request, signed, said = (path.with_name(path.name + end) for end in (".key", ".csr", ".crt", ".ext"))
        _openssl("req", "-new", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={hosts[0]}")
        names = ",".join(("IP:" if _is_number(host) else "DNS:") + host for host in hosts)
        said.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n")
        by = ("-CA", self.path, "-CAkey", self._key, "-CAcreateserial", "-days", "2", "-extfile", said)
        _openssl("x509", "-req", "-in", request, "-out", signed, *by)
        whole = path.with_name(path.name + ".pem")
        whole.write_text(signed.read_text() + key.read_text())
        return whole


def _openssl(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Certificates:
    """What the two sides of a connection on this machine have."""

    authority: Authority
    other: Authority  # that nobody trusts
    here: Path  # for this machine
    stranger: Path  # for this machine, by the other one

    def server(self, path: Path | None = None, *, wants: Authority | None = None) -> ssl.SSLContext:
        """The context of who listens, with its certificate; maybe it wants one of who connects."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path or self.here)
        if wants is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(wants.path)
        return context

    def client(self, trusts: Authority | None = None, path: Path | None = None) -> ssl.SSLContext:
        """The context of who connects; maybe it has a certificate, too."""
        context = ssl.create_default_context(cafile=str((trusts or self.authority).path))
        if path is not None:
            context.load_cert_chain(path)
        return context


_directory = tempfile.TemporaryDirectory(prefix="lockgate-certificates-")


@functools.cache
def certificates() -> Certificates:
    """Those of this run of the tests."""
    authority, other = (Authority(Path(_directory.name), name) for name in ("authority", "nobody"))
    return Certificates(
        authority, other, authority.certificate("127.0.0.1", "localhost"), other.certificate("127.0.0.1")
    )

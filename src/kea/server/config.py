"""The server's settings: where it listens, who may use it, its limits. Knows no HTTP and reads no environment."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field

from kea.errors import InvalidRequest, check_range
from kea.server.parsers import check_parsers
from kea.types import Sampling

MIN_SECRET_LEN = 8
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s\"',*]+", re.IGNORECASE)
HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key and the name under which its holder is a tenant: cached prompts and stored answers are shared within it."""

    key_id: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.key_id:
            raise InvalidRequest("The id of an API key is empty; it names the tenant.", param="api_keys")
        _check_secret(self.secret, f"API key {self.key_id!r}")

    @classmethod
    def from_secret(cls, secret: str) -> ApiKey:
        """Name a bare key by a digest of it, so that its tenant stays the same over restarts and changes of order."""
        _check_secret(secret, f"An API key of {len(secret)} characters")
        return cls("key-" + hashlib.sha256(secret.encode()).hexdigest()[:12], secret)


def _check_secret(secret: str, named: str) -> None:
    if len(secret) < MIN_SECRET_LEN or not secret.isascii() or " " in secret:
        raise InvalidRequest(
            f"{named} is unusable: it needs {MIN_SECRET_LEN} ASCII characters or more, no space.", param="api_keys"
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and one key, may ask for; sessions and their calls have theirs in `kea.service`, prompts the
    model's length.

    `session_lease_s`: how long the calls of a session run on without a request or a reader of its client.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_prompts: int = 1024
    max_choices: int = 128
    max_stop_strings: int = 64
    max_requests_per_key: int = 4096
    max_stored_responses: int = 4096
    stored_response_s: float = 3600.0
    session_lease_s: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check_range(name, getattr(self, name), 1)


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What stands between the server and the net.

    `allowed_origins`: web pages whose scripts may ask this server ("*": all). `allowed_hosts`: names under which it may
    be asked, besides the address that it listens on and those of this machine ("*": any); where there are none, only a
    server without keys that listens on this machine alone looks at the name. `ssl_certfile`, `ssl_keyfile`: PEM files
    with the certificate and its chain, and with its private key (None: it stands in the certificate's file); without a
    certificate the server speaks plain HTTP.
    """

    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    def __post_init__(self) -> None:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise InvalidRequest(
                f"ssl_keyfile is {self.ssl_keyfile!r} without ssl_certfile; a key needs its certificate.",
                param="ssl_keyfile",
            )
        for origin in self.allowed_origins:
            check_origin(origin)
        for host in self.allowed_hosts:
            check_host(host)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server listens and how it behaves.

    `port` 0 takes a free one. `model_names`: the names under which the model is offered, the first one reported (empty:
    the engine's). `tool_call_parser` and `reasoning_parser`: "auto" chooses by the chat template, "none" switches
    them off. `default_sampling`: of requests of OpenAI's form, for each field that they leave out.
    `shutdown_grace_s`: how long running requests may go on after a stop was asked for, before they fail with an answer.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[ApiKey, ...] = ()
    insecure: bool = False
    model_names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    parrot_routes: bool = True
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    shutdown_grace_s: float = 30.0
    default_sampling: Sampling = field(default_factory=Sampling)
    web: WebConfig = field(default_factory=WebConfig)

    def __post_init__(self) -> None:
        check_range("port", self.port, 0, 65535)
        check_parsers(self.tool_call_parser, self.reasoning_parser)
        check_range("shutdown_grace_s", self.shutdown_grace_s, 0)
        if len({key.key_id for key in self.api_keys}) < len(self.api_keys):
            raise InvalidRequest("Two API keys have the same id; ids name tenants.", param="api_keys")
        if not (self.api_keys or self.insecure or is_loopback(self.host)):
            raise InvalidRequest(
                f"Refusing to listen on {self.host!r} without API keys: anyone who reaches it could use it.",
                param="host",
                hint="Give an API key (--api-key or KEA_API_KEY), listen on 127.0.0.1, or allow it with --insecure.",
            )


def check_origin(origin: str) -> None:
    """Raise `InvalidRequest` for what no browser sends as an origin: a scheme, a host, perhaps a port."""
    if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
        raise InvalidRequest(
            f"allowed_origins has {origin[:80]!r}; an origin is such as https://app.example or http://localhost:3000, "
            "and * stands for all.",
            param="allowed_origins",
        )


def check_host(host: str) -> None:
    """Raise `InvalidRequest` for what is no name of a host in lower case, without a port."""
    if host != "*" and not HOST.fullmatch(host):
        raise InvalidRequest(
            f"allowed_hosts has {host[:80]!r}; a host is such as kea.example or 10.0.0.7, in lower case and without a "
            "port, and * stands for all.",
            param="allowed_hosts",
        )


def host_name(host: str) -> str:
    """Return the name in a Host header: without port, brackets and the dot of the root, in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return (name.partition(":")[0] if name.count(":") == 1 else name).rstrip(".")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"

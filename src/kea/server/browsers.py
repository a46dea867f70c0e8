"""What browsers may be made to send: names and pages that are strangers here are refused before any endpoint.

A page that was opened on this machine can send requests to any address of it. Two ways are open to a stranger's page: a
name of its own that resolves to this machine (DNS rebinding: then the browser takes the answer for the page's own), and
requests that need no permission (a form, `text/plain`, an empty body). The header Host tells the first, Origin and
Sec-Fetch-Site the second; pages cannot set them. Where keys are asked for, neither way leads anywhere.
Knows no endpoints.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from kea.errors import KeaError, PermissionDenied
from kea.server.config import ServerConfig, host_name, is_loopback
from kea.server.endpoint import header_of
from kea.server.errors import error_response

EXPOSED = ("x-request-id", "x-kea-ignored-fields", "retry-after", "x-should-retry")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_PAGES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for the server's own pages, and for what a person typed."""
MAX_QUOTED_LEN = 80


def browser_rules(config: ServerConfig) -> list[Middleware]:
    """Return what stands in front of everything, outermost first."""
    origins = config.web.allowed_origins
    sharing = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("*",),
        allow_headers=("*",),
        expose_headers=EXPOSED,
    )
    return [*((sharing,) if origins else ()), Middleware(Doorkeeper, config=config)]


class Doorkeeper:
    """Refuses requests under strangers' names or from strangers' pages; lives as long as the application."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._web = config.web
        self._host = config.host.strip("[]").lower()
        is_open = not config.api_keys
        self._checks_names = bool(config.web.allowed_hosts) or (is_open and is_loopback(config.host))
        self._checks_pages = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        app = self._app if refusal is None else error_response(refusal)
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> KeaError | None:
        host = header_of(scope, "host")
        if self._checks_names and host is not None and not self._is_known(host):
            return PermissionDenied(
                f"Host is {host[:MAX_QUOTED_LEN]!r}, a name that this server does not go by.",
                hint="Start it with --allowed-hosts NAME, or ask for it under localhost.",
                param="Host",
            )
        origin = header_of(scope, "origin")
        if self._checks_pages and scope["method"] not in SAFE_METHODS and self._is_foreign(scope, origin, host):
            return PermissionDenied(
                f"A web page of origin {(origin or 'unknown')[:MAX_QUOTED_LEN]!r} may not ask this server, which has "
                "no API keys.",
                hint="Start the server with --allowed-origins ORIGIN.",
                param="Origin",
            )
        return None

    def _is_known(self, host: str) -> bool:
        name = host_name(host)
        allowed = self._web.allowed_hosts
        return name == self._host or is_loopback(name) or "*" in allowed or name in allowed

    def _is_foreign(self, scope: Scope, origin: str | None, host: str | None) -> bool:
        """Tell whether a page of another origin, which was not allowed, made the browser send this."""
        site = header_of(scope, "sec-fetch-site")
        if site in OWN_PAGES or (site is None and origin is None):
            return False
        allowed = self._web.allowed_origins
        if "*" in allowed or origin in allowed:
            return False
        return site is not None or origin != f"{scope['scheme']}://{host}"

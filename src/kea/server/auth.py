"""Who is asking: API keys to tenants, secrets compared in constant time. Knows no routes."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from kea.errors import AuthenticationFailed
from kea.server.config import ApiKey

OPEN_TENANT = ""
SCHEME = "bearer"


def is_same_secret(given: str, expected: str) -> bool:
    """Compare in a time that depends on neither secret's content."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())


class Authenticator:
    """Maps keys to tenants. Without keys, everyone is the same tenant."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    @property
    def is_open(self) -> bool:
        return not self._keys

    def tenant_of_header(self, authorization: str | None) -> str:
        """Return the tenant of an Authorization header, or raise `AuthenticationFailed`."""
        if self.is_open:
            return OPEN_TENANT
        if authorization is None:
            raise AuthenticationFailed(
                "No API key was given.", hint="Send the header `Authorization: Bearer KEY`.", param="Authorization"
            )
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != SCHEME:
            raise AuthenticationFailed(
                f"The Authorization scheme is {scheme[:20]!r}; it must be Bearer.", param="Authorization"
            )
        return self.tenant_of_key(secret.strip())

    def tenant_of_key(self, secret: str, *, param: str = "Authorization") -> str:
        """Return the tenant of a key, or raise `AuthenticationFailed`. Every key is compared, whichever matches."""
        if self.is_open:
            return OPEN_TENANT
        matches = [key.key_id for key in self._keys if is_same_secret(secret, key.secret)]
        if not matches:
            raise AuthenticationFailed("The API key is wrong.", param=param)
        return matches[0]

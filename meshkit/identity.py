"""Owns how the caller's identity is read from a call's metadata."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from couponmesh.type.v1 import access_pb2
from meshkit.context import Principal
from meshkit.errors import MeshError

JWT_PAYLOAD_KEY = "x-jwt-payload"
SERVICE_KEY = "x-mesh-service"
FORWARDED_FOR_KEY = "x-forwarded-for"
# A cashier system sends one token for its whole life, so nearly every call finds its principal here.
CACHED_PRINCIPALS = 2_048

_SERVICE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ROLES = {
    name.removeprefix("ROLE_").lower(): number
    for name, number in access_pb2.Role.items()
    # A token never makes its bearer a service: only a direct hop does.
    if number not in (access_pb2.ROLE_UNSPECIFIED, access_pb2.ROLE_SERVICE)
}


class Identities:
    """Turns metadata into principals and remembers the latest ones."""

    def __init__(self) -> None:
        self._of_claims = lru_cache(maxsize=CACHED_PRINCIPALS)(principal_of_claims)
        self._of_service = lru_cache(maxsize=64)(_principal_of_service)

    def principal(self, metadata: Mapping[str, Any]) -> Principal:
        """Who calls.

        The edge removes both keys from what a client sends and sets the claims of a verified token; a call without
        claims but with a service's name came directly from that service.

        Raises:
            MeshError: UNAUTHENTICATED, when the metadata names nobody.
        """
        claims = metadata.get(JWT_PAYLOAD_KEY)
        if claims is not None:
            return self._of_claims(claims)
        service = metadata.get(SERVICE_KEY)
        if service is not None:
            return self._of_service(service)
        raise MeshError("UNAUTHENTICATED")


def principal_of_claims(payload: str) -> Principal:
    """The principal of a verified token.

    Args:
        payload: The token's claims, JSON in base64url with or without padding.

    Raises:
        MeshError: UNAUTHENTICATED, when the claims cannot be read or name nobody.
    """
    try:
        claims = json.loads(base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise MeshError("UNAUTHENTICATED") from error
    if not isinstance(claims, dict):
        raise MeshError("UNAUTHENTICATED")
    subject = _text(claims, "sub")
    client_id = _text(claims, "client_id") or subject
    if not client_id:
        raise MeshError("UNAUTHENTICATED")
    named = claims.get("roles")
    roles = named if isinstance(named, list) else []
    return Principal(
        client_id=client_id,
        subject=subject,
        roles=frozenset(_ROLES[role] for role in roles if isinstance(role, str) and role in _ROLES),
        merchant_id=_text(claims, "merchant_id"),
        channel=_text(claims, "channel"),
    )


def is_service(metadata: Mapping[str, Any]) -> bool:
    """Whether the call came directly from another service, so that it has no claims."""
    return SERVICE_KEY in metadata and JWT_PAYLOAD_KEY not in metadata


def edge_address(metadata: Mapping[str, Any]) -> str:
    """The caller's address as the edge saw it: the last element of X-Forwarded-For, which the edge itself appends."""
    forwarded = metadata.get(FORWARDED_FOR_KEY)
    return str(forwarded).rpartition(",")[2].strip() if forwarded else ""


def _principal_of_service(name: str) -> Principal:
    if not _SERVICE_NAME.fullmatch(name):
        raise MeshError("UNAUTHENTICATED")
    return Principal(client_id=name, subject=name, roles=frozenset({access_pb2.ROLE_SERVICE}), service=name)


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    # Some issuers write ids as numbers; true and false are no ids.
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return str(value)

"""Owns the development signing keys and makes the access tokens that the edge accepts."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshctl.edge.certificates import write_private

ISSUER = "couponmesh-dev"
AUDIENCE = "couponmesh"
ALGORITHM = "ES256"
# During a rotation the old key is still accepted while the new one already signs.
LIVE_KEYS_MAX = 2
TTL_MAX_S = 365 * 24 * 3600
CHANNELS = ("APP", "PC", "H5", "MINI_PROGRAM")
_KEY_NAME = re.compile(r"^dev-([0-9]{1,9})\.pem$")
_DURATION = re.compile(r"^([0-9]{1,9})([smhd])$")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Claims:
    """Who a token speaks for.

    Attributes:
        subject: the user id for a shopper; otherwise the client id.
        roles: names as in couponmesh.type.v1.Role, lower case, without the prefix.
        client_id: which system calls.
        merchant_id: the one merchant a cashier acts for; empty for others.
        channel: "APP", "PC", "H5", "MINI_PROGRAM" or empty.
    """

    subject: str
    roles: tuple[str, ...]
    client_id: str
    merchant_id: str = ""
    channel: str = ""


class DevKeys:
    """The live signing keys in one folder; the one with the highest number signs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exist(self) -> bool:
        """Whether there is a key already."""
        return bool(self._numbers())

    def live(self) -> dict[str, ec.EllipticCurvePrivateKey]:
        """Key id to private key, oldest first; makes the first key when there is none."""
        numbers = self._numbers()
        if not numbers:
            self._make(1)
            numbers = [1]
        return {f"dev-{number}": self._load(number) for number in numbers[-LIVE_KEYS_MAX:]}

    def rotate(self) -> str:
        """Adds a key that signs from now on, drops all but the one before it, and gives the new key id."""
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 1
        self._make(number)
        for old in self._numbers()[:-LIVE_KEYS_MAX]:
            self._path(old).unlink(missing_ok=True)
        return f"dev-{number}"

    def jwks(self) -> str:
        """The public halves of the live keys as a JSON Web Key Set (RFC 7517)."""
        keys: list[dict[str, Any]] = []
        for key_id, key in self.live().items():
            public: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
            keys.append({**public, "kid": key_id, "alg": ALGORITHM, "use": "sig"})
        return json.dumps({"keys": keys}, sort_keys=True)

    def token(self, claims: Claims, *, ttl_s: int, now_s: int | None = None) -> str:
        """Signs a token.

        Args:
            claims: who it speaks for.
            ttl_s: how long it is valid, in seconds, 1 to a year.
            now_s: seconds since the epoch at which it begins; now by default.

        Returns:
            The compact JWS (RFC 7519).

        Raises:
            ValueError: the lifetime is out of range.
        """
        if not 1 <= ttl_s <= TTL_MAX_S:
            raise ValueError(f"a token lives 1 to {TTL_MAX_S} seconds, not {ttl_s}")
        begin_s = int(time.time()) if now_s is None else now_s
        key_id, key = list(self.live().items())[-1]
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": begin_s,
            "exp": begin_s + ttl_s,
            "sub": claims.subject,
            "roles": list(claims.roles),
            "client_id": claims.client_id,
            "merchant_id": claims.merchant_id,
            "channel": claims.channel,
        }
        return jwt.encode(payload, key, algorithm=ALGORITHM, headers={"kid": key_id})

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        names = (_KEY_NAME.match(path.name) for path in self._folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _path(self, number: int) -> Path:
        return self._folder / f"dev-{number}.pem"

    def _make(self, number: int) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self._path(number), pem, replace=False)

    def _load(self, number: int) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self._path(number).read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self._path(number)} is not an EC key")
        return key


def parse_duration_s(text: str) -> int:
    """Seconds in "90s", "15m", "1h" or "7d".

    Raises:
        ValueError: the text has another form.
    """
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"a duration looks like 90s, 15m, 1h or 7d, not {text!r}")
    return int(match[1]) * _UNIT_S[match[2]]

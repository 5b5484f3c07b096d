# Shared by every script here; sourced, never run.
#
# One per-user cache holds whatever is fetched or built, so that a second clone on the same machine starts warm.

set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
cache="$(realpath --canonicalize-missing "${LAKEBEAT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lakebeat}")"
mkdir -p "$cache"

# Absolute, since cargo does not run where it was called.
CARGO_TARGET_DIR="$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-$cache/target}")"
export CARGO_TARGET_DIR
# rustup's own installer puts the tools here, and a shell that was open before does not have it in its PATH.
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

export LAKEBEAT_CACHE="$cache" # for the scripts that this one calls

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Setup steps of two clones may meet in one cache: the second waits, and then finds the work done.
lock() {
    exec 9>"$cache/$1.lock"
    flock --nonblock 9 || {
        say "waiting for another run that holds $cache/$1.lock"
        flock 9
    }
}

# need_packages NAME... installs Debian packages. The caller has found something missing; this only fetches it.
need_packages() {
    have apt-get || fail "these are missing and there is no apt-get here; install what your system calls: $*"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || fail "Debian packages are missing; run as root: apt-get install $*"
        as_root=(sudo)
    fi
    say "installing Debian packages: $*"
    (
        flock 8
        # An index fetched long ago names versions that the mirrors no longer hold. Whoever else fetches one at this moment
        # makes apt-get give up at once.
        for _ in $(seq 30); do
            "${as_root[@]}" apt-get update -qq >&2 && break
            sleep 2
        done
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >&2
    ) 8>"$cache/packages.lock" || fail "apt-get install $* failed"
}

# One for each list of requirements, since tests of another clone may be running in theirs.
venv="$cache/venv-$(sha256sum "$root/tests/e2e/requirements.txt" | cut -c1-12)"

# stamped FOLDER CONTENT is true when FOLDER was completed by the same CONTENT; stamp says that it now is.
stamped() { [ -f "$1/.stamp" ] && [ "$(cat "$1/.stamp")" = "$2" ]; }
stamp() { printf '%s' "$2" >"$1/.stamp"; }

# What cargo reads.
sources=(Cargo.toml Cargo.lock rust-toolchain.toml .clippy.toml src lakehouse ingest transforms flight-server snowflake-adapter)

# in_sources COMMAND... runs it in a copy of this clone's sources, one clone at a time.
#
# All clones of a user share one target folder, and cargo tells by the times of the files what to compile again: a clone
# older than the last build would be given that build's program, and a fresh one compiles what nobody changed. The copy
# stands at one place for all of them, and the time of a file there moves when, and only when, its content does.
in_sources() (
    lock sources
    mkdir -p "$cache/sources"
    cd "$root"
    rsync --recursive --links --perms --checksum --delete --filter=':- .gitignore' "${sources[@]}" "$cache/sources/"
    cd "$cache/sources"
    # Without the lock's descriptor: a process that a test leaves behind must not keep it.
    "$@" 9>&-
)

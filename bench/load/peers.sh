#!/bin/sh
# Sourced by the load benches: goes to the repository's root, installs what is missing, builds the daemon.
# package:file that shows that it is there
set -eu
cd "$(dirname "$0")/../.."

need() {
    missing=""
    for entry in "$@"; do
        [ -e "${entry#*:}" ] || missing="$missing ${entry%%:*}"
    done
    [ -n "$missing" ] || return 0
    echo "installing$missing" >&2
    root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    $root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
}

need python3:/usr/bin/python3 fio:/usr/bin/fio
fio --enghelp | grep -qw nbd || { echo "this fio has no nbd engine (Debian's has)" >&2; exit 1; }
# BLOCKD names another build, for instance that of an older commit.
[ -n "${BLOCKD:-}" ] || ./start.sh --build >&2

#!/bin/bash
# Makes a clean Debian 12 for the tests of the package: debootstrap's smallest, with the packages beside it that the tests
# install, so that they need no network. Prints the path of its tar file, which stays in the user's cache: a minute, once.
#   tests/package/tree.sh      as root; BLOCKSERVER_CACHE (default ~/.cache/blockserver) is where it lies
set -euo pipefail
umask 022
suite=bookworm
here=$(cd "$(dirname "$0")" && pwd)
cache=${BLOCKSERVER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/blockserver}

fail() {
    printf 'tree.sh: %s\n' "$*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "debootstrap needs root"
mkdir -p "$cache"
tree=$cache/debian-$suite-$(dpkg --print-architecture)-$(sha256sum "$here/tree.sh" | cut -c 1-8).tar
# Two test runs at once must not build over each other.
exec 9>"$cache/lock"
flock 9
if [ -e "$tree" ]; then
    echo "$tree"
    exit 0
fi

command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root log=$work/log

# Where this machine's own apt finds the suite; debootstrap knows a mirror too.
mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME) $(ORIGIN)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite=$suite '$2 == suite && $3 == "Debian" { print $1; exit }')
# shellcheck disable=SC2086 # No mirror is no argument.
if ! debootstrap --variant=minbase $suite "$root" $mirror >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "debootstrap could not make Debian 12 from ${mirror:-its default mirror}: is a mirror reachable? apt-get update tells"
fi
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# What blockd depends on, and what a machine has that runs it as a service.
if ! { chroot "$root" apt-get update && chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    --download-only adduser libssl3 libsqlite3-0 liblz4-1 libstdc++6 systemd; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "the packages that blockd needs could not be fetched: is a mirror reachable? apt-get update tells"
fi
tar -c -C "$root" -f "$work/tree.tar" .
mv "$work/tree.tar" "$tree"
echo "$tree"

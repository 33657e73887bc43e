#!/bin/sh
# Hours of mixed, verified load on one daemon: what it loses, leaks, or does more slowly. Options: bench/load/soak.sh --help
. "$(dirname "$0")/peers.sh"
need qemu-utils:/usr/bin/qemu-io libnbd-bin:/usr/bin/nbdinfo
[ -e /usr/lib/"$(uname -m)"-linux-gnu/qemu/block-iscsi.so ] || need qemu-block-extra:/nowhere
exec python3 bench/load/soak.py "$@"

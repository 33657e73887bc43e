#!/bin/sh
# blockd beside qemu-nbd, nbdkit, nbd-server and the raw file, by fio's nbd engine. Options: bench/load/nbd.sh --help
. "$(dirname "$0")/peers.sh"
need qemu-utils:/usr/bin/qemu-nbd nbdkit:/usr/bin/nbdkit nbd-server:/usr/bin/nbd-server
exec python3 bench/load/nbd.py "$@"

#!/bin/sh
# What a greedy volume does to a quiet one of the same disk, and what a limit lets through. Options: bench/load/qos.sh --help
. "$(dirname "$0")/peers.sh"
need qemu-utils:/usr/bin/qemu-nbd
exec python3 bench/load/qos.py "$@"

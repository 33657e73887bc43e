#!/bin/sh
# Volumes out to images and streams and in again, beside qemu-img convert. Options: bench/load/stream.sh --help
. "$(dirname "$0")/peers.sh"
need qemu-utils:/usr/bin/qemu-img
exec python3 bench/load/stream.py "$@"

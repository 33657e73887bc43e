#!/bin/sh
# CPU of an idle daemon with many volumes. Options: bench/load/idle.sh --help
. "$(dirname "$0")/peers.sh"
exec python3 bench/load/singles.py idle "$@"

#!/bin/sh
# What snapshots and clones cost. Options: bench/load/snapshots.sh --help
. "$(dirname "$0")/peers.sh"
exec python3 bench/load/singles.py snapshots "$@"

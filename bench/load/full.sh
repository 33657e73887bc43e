#!/bin/sh
# Throughput of a store that is 90 % full beside one that is nearly empty. Options: bench/load/full.sh --help
. "$(dirname "$0")/peers.sh"
exec python3 bench/load/singles.py full "$@"

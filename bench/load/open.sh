#!/bin/sh
# How soon blockd is ready again after a kill under load. Options: bench/load/open.sh --help
. "$(dirname "$0")/peers.sh"
exec python3 bench/load/singles.py open "$@"

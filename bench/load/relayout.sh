#!/bin/sh
# Random writes while relayout is at work, and without it. Options: bench/load/relayout.sh --help
. "$(dirname "$0")/peers.sh"
exec python3 bench/load/singles.py relayout "$@"

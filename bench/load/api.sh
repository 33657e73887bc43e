#!/bin/sh
# The admin API under load beside fio, and with many volumes. Options: bench/load/api.sh --help
. "$(dirname "$0")/peers.sh"
exec python3 bench/load/api.py "$@"

#!/bin/sh
# Durable appends to an append-only volume, beside a file with O_APPEND and fdatasync on the same disk. Options: bench/load/aof.sh --help
. "$(dirname "$0")/peers.sh"
# The client too, or an old one is measured.
dotnet build bench/append -c Release -v quiet >&2
exec python3 bench/load/aof.py "$@"

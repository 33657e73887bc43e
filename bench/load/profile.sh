#!/bin/sh
# Where blockd's time goes under one workload: user and kernel, the hottest symbols, managed allocation. Options: --help
. "$(dirname "$0")/peers.sh"
need linux-perf:/usr/bin/perf
dotnet build bench/micro -c Release -v q --nologo >&2
exec python3 bench/load/profile.py "$@"

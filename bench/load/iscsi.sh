#!/bin/sh
# blockd beside tgt and istgt over iSCSI, by iscsi-perf, qemu-img bench and an initiator of our own. Options: bench/load/iscsi.sh --help
. "$(dirname "$0")/peers.sh"
need qemu-utils:/usr/bin/qemu-img qemu-block-extra:/usr/share/doc/qemu-block-extra libiscsi-bin:/usr/bin/iscsi-perf \
    tgt:/usr/sbin/tgtd istgt:/usr/sbin/istgt
dotnet build bench/initiator -c Release -v q --nologo >&2
exec python3 bench/load/iscsi.py "$@"

"""blockd beside tgt and istgt over iSCSI, in interleaved rounds. Run it by bench/load/iscsi.sh."""

import argparse
import re
import sys
from dataclasses import dataclass, field

import compare
import iscsi_clients
from iscsi_servers import LUNS, PEERS, Blockd
from workloads import Target


@dataclass
class Line:
    """What one client does. `quick` lines are part of a quick run, with the peers of `quick_peers`."""

    name: str
    what: str
    client: str
    rw: str
    block: int
    depth: int
    sessions: int = 1
    digests: bool = False  # headers only with qemu-img, headers and data with the own initiator
    metric: str = "iops"
    many_peers: bool = False
    targets: dict = field(default_factory=dict)


def aio(metric, ratio, at_most=False):
    return Target("tgt-aio", metric, ratio, at_most)


CPU = aio("cpu_us_per_io", 0.5, at_most=True)
READ = {"shm": [aio("iops", 2.0), CPU], "disk": [Target("tgt-aio", "iops", 1.8, other=Target("raw", "iops", 0.9))]}
WRITE = {"shm": [aio("iops", 2.0), CPU], "disk": [aio("iops", 1.8)]}


def unlike(line, metric="iops"):
    return [Target("blockd", metric, 0.85, line=line)]


LINES = [
    Line("perf-read-4k-qd32", "iscsi-perf, 4k reads in order, QD32", "iscsi-perf", "read", 4096, 32, many_peers=True, targets=READ),
    Line("read-4k-qd32", "qemu-img bench, scattered 4k reads, QD32", "qemu-img", "read", 4096, 32, many_peers=True, targets=READ),
    Line("write-4k-qd32", "qemu-img bench, scattered 4k writes, QD32", "qemu-img", "write", 4096, 32, many_peers=True, targets=WRITE),
    Line("read-4k-qd1", "qemu-img bench, scattered 4k reads, QD1", "qemu-img", "read", 4096, 1, targets={"shm": [aio("iops", 1.1)]}),
    Line("write-4k-qd1", "qemu-img bench, scattered 4k writes, QD1", "qemu-img", "write", 4096, 1, targets={"shm": [aio("iops", 1.1)]}),
    Line("read-128k-qd16", "qemu-img bench, 128k reads in order, QD16", "qemu-img", "read", 131072, 16, metric="mb_per_s",
         targets={"shm": [aio("mb_per_s", 1.5)]}),
    Line("write-128k-qd16", "qemu-img bench, 128k writes in order, QD16", "qemu-img", "write", 131072, 16, metric="mb_per_s",
         targets={"shm": [aio("mb_per_s", 1.5)]}),
    Line("read-4k-qd32-header", "the same with header digests", "qemu-img", "read", 4096, 32, digests=True,
         targets={"shm": unlike("read-4k-qd32"), "disk": unlike("read-4k-qd32")}),
    Line("write-4k-qd32-header", "the same with header digests", "qemu-img", "write", 4096, 32, digests=True,
         targets={"shm": unlike("write-4k-qd32"), "disk": unlike("write-4k-qd32")}),
    Line("own-read-4k-qd32", "own initiator, random 4k reads, QD32", "own", "read", 4096, 32, many_peers=True, targets=READ),
    Line("own-write-4k-qd32", "own initiator, random 4k writes, QD32", "own", "write", 4096, 32, many_peers=True, targets=WRITE),
    Line("own-read-4k-qd1", "own initiator, random 4k reads, QD1", "own", "read", 4096, 1, targets={"shm": [aio("iops", 1.1)]}),
    Line("own-write-4k-qd1", "own initiator, random 4k writes, QD1", "own", "write", 4096, 1, targets={"shm": [aio("iops", 1.1)]}),
    Line("own-read-128k-qd16", "own initiator, 128k reads in order, QD16", "own", "read", 131072, 16, metric="mb_per_s",
         targets={"shm": [aio("mb_per_s", 1.5)]}),
    Line("own-write-128k-qd16", "own initiator, 128k writes in order, QD16", "own", "write", 131072, 16, metric="mb_per_s",
         targets={"shm": [aio("mb_per_s", 1.5)]}),
    *(Line(f"own-{rw}-{size}-digests", "the same with header and data digests", "own", rw, block, depth, digests=True, metric=metric,
           targets={backing: unlike(f"own-{rw}-{size}", metric) for backing in ("shm", "disk")})
      for size, block, depth, metric in (("4k-qd32", 4096, 32, "iops"), ("128k-qd16", 131072, 16, "mb_per_s")) for rw in ("read", "write")),
    Line("perf-read-4k-4x32", f"iscsi-perf, {LUNS} sessions on {LUNS} LUNs, QD32 each", "iscsi-perf", "read", 4096, 32, sessions=LUNS),
    Line("write-4k-4x32", f"qemu-img bench, {LUNS} sessions on {LUNS} LUNs, QD32 each", "qemu-img", "write", 4096, 32, sessions=LUNS),
]

# Requests of the first run of a line, before the rate is known.
FIRST_COUNT = {4096: 4000, 131072: 1000}


class IscsiComparison(compare.Comparison):
    """iSCSI over TCP on loopback."""

    script = "bench/load/iscsi.sh"
    workloads = tuple(LINES)

    def __init__(self, options):
        super().__init__(options)
        self.rates = {}

    def servers(self, folder, direct, names):
        ours = Blockd(folder, self.options.size, direct, self.options.blockd, self.options.blockd_options.split())
        return [ours, *(PEERS[name](folder, self.options.size, direct) for name in names)]

    def wanted(self, backing, transport):
        if self.options.only:
            return [line for line in LINES if re.search(self.options.only, f"{backing}/{transport}/{line.name}")]
        if self.options.quick and backing == "disk":
            return [line for line in LINES if line.many_peers]  # the others would say again what the shm lines say
        return list(LINES)

    def peers(self, workloads, transport):
        if self.options.servers is not None:
            return [name for name in self.options.servers.split(",") if name]
        if self.options.quick and not any(line.many_peers for line in workloads):
            return ["tgt-aio", "raw"]
        return list(PEERS)

    def measures(self, server, workload):
        if workload.digests:
            return server.name == "blockd"  # compared with itself; tgt must be told to take digests
        if server.name == "raw":
            return workload.client == "qemu-img" and workload.sessions == 1
        return not self.options.quick or self.options.servers is not None or workload.many_peers or server.name in ("blockd", "tgt-aio")

    def warm(self, transport, server):
        for line in LINES:
            if line.name in ("read-4k-qd32", "write-4k-qd32"):
                for _ in range(2):
                    self.measure(0, transport, line, server)

    def measure(self, number, transport, workload, server):
        key = (server.name, workload.name)
        if key not in self.rates and workload.client == "qemu-img":
            first = bench(server, workload, self.options.seconds, FIRST_COUNT[workload.block] // (1 if workload.depth > 1 else 4))
            self.rates[key] = first["iops"]
        figures = bench(server, workload, self.options.seconds, int(self.rates.get(key, 0) * self.options.seconds), number)
        self.rates[key] = figures["iops"]
        return figures


def bench(server, line, seconds, count, seed=1):
    """One run of a line: of that many seconds, or that many requests, whichever its client understands."""
    if line.client == "iscsi-perf":
        return iscsi_clients.perf(server, line.sessions, line.block, line.depth, seconds)
    if line.client == "own":
        return iscsi_clients.own(server, line.rw, line.block, line.depth, seconds, line.digests, seed)
    return iscsi_clients.qemu(server, line.sessions, line.rw, line.block, line.depth, max(100, count // line.sessions), line.digests)


def make():
    parser = argparse.ArgumentParser(prog="bench/load/iscsi.sh", description="blockd beside tgt and istgt, by iscsi-perf and qemu-img bench.")
    compare.common_arguments(parser, PEERS)
    return IscsiComparison(compare.parsed(parser, PEERS))


if __name__ == "__main__":
    sys.exit(compare.main(make, {"qemu-img": ["qemu-img", "--version"], "iscsi-perf": ["dpkg-query", "-W", "libiscsi-bin"],
                                 "tgt": ["tgtd", "--version"], "istgt": ["dpkg-query", "-W", "istgt"]}))

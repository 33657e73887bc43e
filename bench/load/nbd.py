"""blockd beside its peers, by fio, in interleaved rounds. Run it by bench/load/nbd.sh."""

import argparse
import re
import sys

import compare
import fio
from servers import PEERS, Blockd
from workloads import AGED, AGED_OVERWRITE, RELAID, WORKLOADS


class NbdComparison(compare.Comparison):
    """NBD over unix sockets and TCP."""

    script = "bench/load/nbd.sh"
    workloads = (*WORKLOADS, AGED, RELAID)

    def __init__(self, options):
        super().__init__(options)
        self.transports = ("unix", "tcp") if options.transport == "both" else (options.transport,)

    def servers(self, folder, direct, names):
        ours = Blockd(folder, self.options.size, direct, self.options.blockd, self.options.blockd_options.split())
        return [ours, *(PEERS[name](folder, self.options.size, direct) for name in names)]

    def wanted(self, backing, transport):
        chosen = []
        for workload in self.workloads:
            name = f"{backing}/{transport}/{workload.name}"
            if self.options.only:
                if re.search(self.options.only, name):
                    chosen.append(workload)
            elif workload is RELAID:
                if backing == "disk" and transport == "unix":
                    chosen.append(workload)
            elif transport == "unix" or (workload is not AGED and (workload.quick_tcp or not self.options.quick)):
                chosen.append(workload)
        return chosen

    def peers(self, workloads, transport):
        if self.options.servers is not None:
            return [name for name in self.options.servers.split(",") if name]
        names = ["qemu-nbd"]
        if transport == "unix":
            names.append("raw")  # over TCP it would be the same figure again
        if not self.options.quick or (transport == "unix" and any(w.many_peers for w in workloads)):
            names += ["nbdkit", "nbd-server"]
        return names

    def measures(self, server, workload):
        """A quick run asks the slow peers for the 4k QD32 lines only."""
        return not self.options.quick or self.options.servers is not None or workload.many_peers or server.name not in ("nbdkit", "nbd-server")

    def warm(self, transport, server):
        for rw in ("randread", "randwrite"):
            fio.run(server.target(transport), [f"--rw={rw}", "--bs=4k", "--iodepth=32", f"--size={server.size // 2}", "--time_based=1",
                                               "--runtime=1", "--norandommap=1"])

    def in_rounds(self, workloads):
        return [w for w in workloads if w not in (AGED, RELAID)]

    def measure(self, number, transport, workload, server):
        return fio.run(server.target(transport), workload.fio(server.size, self.options.seconds, number * 7919), server.pid)

    def after_rounds(self, backing, transport, workloads, servers):
        for workload in [w for w in (AGED, RELAID) if w in workloads]:
            for number in range(1, 2 if self.options.quick or workload is RELAID else 4):
                for server in servers:
                    if self.measures(server, workload):
                        self.keep(number, backing, transport, workload, server, self.aged(number, transport, server, workload))

    def aged(self, number, transport, server, workload):
        """Overwrites a region at random twice, lets blockd lay it out anew if that is the line, then reads it in order, once through."""
        region = min(self.options.size // 2, 128 << 20) if self.options.quick else self.options.size // 2
        target = [*server.target(transport), f"--size={region}"]
        over = fio.run(target, [*AGED_OVERWRITE, f"--randseed={number * 7919}"], server.pid)
        waited = None
        if workload is RELAID and isinstance(server, Blockd):
            waited = server.lay_out(transport)
            self.say(f"laid out anew after {waited:.0f} s, {server.disk()['relaidBytes'] >> 20} MiB; {server.left_scattered()} extents left")
            fio.run(server.target(transport), ["--rw=randread", "--bs=4k", "--iodepth=32", f"--size={region}", "--time_based=1", "--runtime=1",
                                               "--norandommap=1"])
        figures = fio.run([*server.target(transport), f"--size={region}"], ["--rw=read", "--bs=128k", "--iodepth=16"], server.pid)
        figures["relayout_s"] = waited
        figures["overwrite_iops"] = over["iops"]
        figures["overwrite_cpu_us_per_io"] = over["cpu_us_per_io"]
        return figures


def make():
    parser = argparse.ArgumentParser(prog="bench/load/nbd.sh", description="blockd beside qemu-nbd, nbdkit, nbd-server and the raw file, by fio.")
    compare.common_arguments(parser, PEERS)
    parser.add_argument("--transport", choices=["unix", "tcp", "both"], default="both", help="default: both")
    return NbdComparison(compare.parsed(parser, PEERS))


if __name__ == "__main__":
    sys.exit(compare.main(make, {"fio": ["fio", "--version"], "qemu-nbd": ["qemu-nbd", "--version"],
                                 "nbdkit": ["nbdkit", "--version"], "nbd-server": ["nbd-server", "-V"]}))

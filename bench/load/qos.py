"""A quiet volume (4k, one at a time) beside a greedy one (by default 128k writes, 128 at a time) of one disk, with and without the equal parts
of the disk (--disk-share), in interleaved rounds; controls without our daemon in the same rounds; and how exactly a limited volume is held.

Run it by qos.sh.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request

import fio
import machine
from daemon import Daemon, run_bench, verdict

QUIET = ["--bs=4k", "--iodepth=1", "--norandommap=1", "--time_based=1"]
# What the greedy one does, and how many of those a half of the disk's default share (256k) holds.
LOADS = {"write-128k": (["--rw=write", "--bs=128k", "--iodepth=128"], 1), "randread-4k": (["--rw=randread", "--bs=4k", "--iodepth=128", "--norandommap=1"], 16),
         "read-4m": (["--rw=read", "--bs=4m", "--iodepth=16"], 1)}
LIMIT_IOPS, LIMIT_BYTES = 2000, 50 << 20


class Pair(Daemon):
    """A daemon with the volumes quiet and greedy on one disk."""

    def __init__(self, folder, size, options, share):
        super().__init__(folder, 0, 3 * size + (1 << 30), options.blockd, options.blockd_options.split(), with_api=True)
        self.volume_bytes = size
        self.share = share

    def command(self, transport):
        return [*super().command(transport), "--disk-share", self.share,
                *(part for name in ("quiet", "greedy") for part in ("--create-volume", f"{name}:{self.volume_bytes}"))]

    def of(self, volume):
        return ["--ioengine=nbd", f"--uri=nbd+unix:///{volume}?socket={self.socket}", f"--size={self.volume_bytes}"]

    def greedy(self, load):
        return [*self.of("greedy"), *LOADS[load][0]]

    def limit(self, volume, **limits):
        with open(self.data + "/admin.token", encoding="ascii") as file:
            token = file.read().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api}/v1/volumes/{volume}", json.dumps({"qos": limits}).encode(), method="PATCH",
            headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


class RawPair:
    """Control: two files of the same disk, each used by a fio of its own, without any server. The greedy one has as many requests at
    the disk at once as the equal parts leave it (one of 128k): what remains is the machine's and the disk's own."""

    def __init__(self, folder, size, _options, _share):
        self.folder, self.size = os.path.abspath(folder), size

    def start_ready(self):
        pass

    def of(self, volume):
        return ["--ioengine=io_uring", "--direct=1", f"--filename={self.folder}/{volume}", f"--size={self.size}"]

    def greedy(self, load):
        arguments, depth = LOADS[load]
        return [*self.of("greedy"), *arguments, f"--iodepth={depth}"]

    def stop(self):
        pass


class SplitPair(Pair):
    """Control: the quiet volume served by our daemon, the greedy one a file of the same disk that is used without any server. What a greedy
    volume of the same daemon costs beyond this is the daemon's own."""

    def __init__(self, folder, size, options, _share):
        super().__init__(folder, size, options, "256k")
        self.raw = RawPair(folder, size, options, None)

    def of(self, volume):
        return self.raw.of(volume) if volume == "greedy" else super().of(volume)

    def greedy(self, load):
        return self.raw.greedy(load)


class PeerPair(RawPair):
    """Control: two files of the same disk, each served by a qemu-nbd of its own."""

    def __init__(self, folder, size, options, share):
        super().__init__(folder, size, options, share)
        self.servers = {}

    def start_ready(self):
        for volume in ("quiet", "greedy"):
            path = os.path.abspath(f"{self.folder}/{volume}")
            with open(path, "ab") as file:
                file.truncate(self.size)
            self.servers[volume] = subprocess.Popen(
                ["qemu-nbd", "--persistent", "--format=raw", "--cache=none", "--aio=io_uring", f"--socket={path}.sock", path],
                stdin=subprocess.DEVNULL)
            end = time.monotonic() + 10
            while not os.path.exists(path + ".sock"):
                if time.monotonic() > end:
                    raise machine.BenchError("qemu-nbd does not listen")
                time.sleep(0.02)

    def of(self, volume):
        return ["--ioengine=nbd", f"--uri=nbd+unix:///?socket={self.folder}/{volume}.sock", f"--size={self.size}"]

    def greedy(self, load):
        return [*self.of("greedy"), *LOADS[load][0]]

    def stop(self):
        for server in self.servers.values():
            server.terminate()
        for server in self.servers.values():
            server.wait(30)


# Of the greedy client, which would have processors of its own. At nice 19 a thread that wakes up may still wait for its time slice.
PRIORITIES = {"idle": ["chrt", "--idle", "0"], "nice": ["nice", "-n", "19"], "same": []}
CONTROLS = {"raw": RawPair, "split": SplitPair, "qemu-nbd": PeerPair}


def beside(pair, workload, seconds, priority, greedy):
    """The quiet volume's figures alone and beside the greedy one, and the greedy one's MB/s."""
    quiet = [*QUIET, f"--rw={workload}", f"--runtime={seconds}"]
    alone = fio.run(pair.of("quiet"), quiet)
    # The clients share the machine's few cores here, as they would not: the quiet one has its core when it wants it.
    load = subprocess.Popen(
        [*PRIORITIES[priority], "fio", "--name=greedy", "--output-format=json", "--thread=1", "--eta=never", *pair.greedy(greedy), "--time_based=1", f"--runtime={seconds + 1}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    time.sleep(0.5)
    both = fio.run(pair.of("quiet"), quiet)
    text, _ = load.communicate(timeout=60)
    job = json.loads(text[text.find("{"):])["jobs"][0]
    rate = (job["write"]["bw_bytes"] + job["read"]["bw_bytes"]) / 1e6
    return {"alone_p99_us": alone["p99_us"], "alone_p50_us": alone["p50_us"], "p99_us": both["p99_us"], "p50_us": both["p50_us"],
            "ratio": both["p99_us"] / alone["p99_us"], "greedy_mb_per_s": rate}


def fairness(options, folder):
    size = machine.parse_size(options.size)
    shares, controls = [s for s in options.shares.split(",") if s], [c for c in options.controls.split(",") if c]
    machine.need_space(folder, len(shares) * (3 * size + (1 << 30)) + len(controls) * (4 * size + (1 << 30)))
    pairs = {}
    for share in shares + controls:
        os.mkdir(f"{folder}/{share}")
        pairs[share] = CONTROLS.get(share, Pair)(f"{folder}/{share}", size, options, share)
    rows = []
    try:
        for pair in pairs.values():
            pair.start_ready()
            for volume in ("quiet", "greedy"):
                fio.run(pair.of(volume), ["--rw=write", "--bs=1M", "--iodepth=4"])
        for _ in range(options.rounds):
            for workload in options.workloads.split(","):
                for share, pair in pairs.items():
                    rows.append({"share": share, "workload": workload, **beside(pair, workload, options.seconds, options.priority, options.load)})
        limits = limited(pairs[shares[-1]], options.limit_seconds) if options.limit_seconds and shares else {}
    finally:
        for pair in pairs.values():
            pair.stop()
    lines = [f"quiet volume (4k, QD1) beside a greedy one ({options.load}), medians of {options.rounds} rounds:",
             "| share | quiet | p50 alone | p99 alone | p50 beside | p99 beside | p99 ratio | greedy MB/s |", "|---|---|---|---|---|---|---|---|"]
    ratios = {}
    for share in pairs:
        for workload in options.workloads.split(","):
            here = [row for row in rows if row["share"] == share and row["workload"] == workload]
            def middle(key, found=here):
                return statistics.median(row[key] for row in found)
            ratios[share, workload] = middle("ratio")
            lines.append(f"| {share} | {workload} | {middle('alone_p50_us'):.0f} | {middle('alone_p99_us'):.0f} | {middle('p50_us'):.0f} | "
                         f"{middle('p99_us'):.0f} | {middle('ratio'):.2f} | {middle('greedy_mb_per_s'):.0f} |")
    # What two files without a server show on the same disk and processors is not the daemon's.
    for share in shares if "raw" in controls else []:
        for workload in options.workloads.split(","):
            over = ratios[share, workload] / ratios["raw", workload]
            lines.append(f"{share} {workload}: p99 ratio {ratios[share, workload]:.2f}, {over:.2f} of that of raw (target 1.5: {verdict(over <= 1.5)})")
    for what, (got, wanted) in limits.items():
        lines.append(f"limited to {wanted:.0f} {what}: {got:.0f} in {options.limit_seconds} s, {100 * (got / wanted - 1):+.1f} % (target 5 %: {verdict(abs(got / wanted - 1) <= 0.05)})")
    return {"rounds": rows, "limits": limits, "ratios": {f"{s} {w}": r for (s, w), r in ratios.items()}}, "\n".join(lines)


def limited(pair, seconds):
    """What goes through with a limit set while the client is attached: IOPS and MB/s."""
    pair.limit("quiet", iops=LIMIT_IOPS)
    operations = fio.run(pair.of("quiet"), ["--rw=randread", "--bs=4k", "--iodepth=32", "--norandommap=1", "--time_based=1", f"--runtime={seconds}"])
    pair.limit("quiet", bytesPerSecond=LIMIT_BYTES)
    bandwidth = fio.run(pair.of("quiet"), ["--rw=randwrite", "--bs=64k", "--iodepth=16", "--norandommap=1", "--time_based=1", f"--runtime={seconds}"])
    pair.limit("quiet")
    return {"IOPS": (operations["iops"], LIMIT_IOPS), "MB/s": (bandwidth["mb_per_s"], LIMIT_BYTES / 1e6)}


def main():
    machine.stop_cleanly()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blockd", default="out/blockd")
    parser.add_argument("--blockd-options", default="", help="more options of the daemon")
    parser.add_argument("--folder", default=".", help="where the stores lie; its disk is what is measured")
    parser.add_argument("--size", default="1g", help="of each volume")
    parser.add_argument("--shares", default="off,256k", help="values of --disk-share to compare")
    parser.add_argument("--load", choices=LOADS, default="write-128k", help="of the greedy volume")
    parser.add_argument("--controls", default="raw,split,qemu-nbd",
                        help="of raw (two fio on two files), split (the quiet one by our daemon, the greedy one a raw file) and qemu-nbd (one for each file)")
    parser.add_argument("--priority", choices=PRIORITIES, default="idle", help="of the greedy client beside the quiet one, with which it shares the processors here")
    parser.add_argument("--workloads", default="randread,randwrite")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--limit-seconds", type=int, default=10, help="how long each limit is looked at; 0: not")
    parser.add_argument("--json", help="write every figure here")
    options = parser.parse_args()
    return run_bench("qos", fairness, options, options.folder)


if __name__ == "__main__":
    sys.exit(main())

"""Export and import beside `qemu-img convert`, and what an increment costs. Run by stream.sh.

One volume of --size, half of it random data and the rest holes. Each round exports and imports it by both, in turn:
pfcli over the admin API, qemu-img over NBD, each on a unix socket of the same daemon. Ratios are those of the medians of one run.
Memory that a virtual machine has not used lately costs it many times the copying: the store's file is there in full before anything
is measured, and in front of each run as much memory as it fills was in use a moment ago.
Then --changes shares of the volume are written in pieces of 4 KiB, and each increment is timed.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time

import machine
from daemon import Daemon, run_bench
from machine import BenchError


def timed(*command):
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr or done.stdout}")
    return time.monotonic() - began


class Bench:
    """A daemon, its tools, and an image to begin with."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.size = machine.parse_size(options.size)
        machine.need_space(folder, int(self.size * 4.5) + (1 << 30))
        self.image = os.path.join(folder, "source.raw")
        self.server = "unix:" + os.path.join(folder, "api.sock")
        self.daemon = Daemon(folder, None, int(self.size * 2.5) + (512 << 20), options.blockd, ["--api", self.server, *options.blockd_options.split()], with_api=True)

    def pfcli(self, *arguments):
        token = os.path.join(self.daemon.data, "admin.token")
        program = os.path.join(os.path.dirname(self.options.blockd) or ".", "pfcli")
        return timed(program, "--server", self.server, "--token-file", token, "--yes", *arguments)

    def uri(self, volume):
        return f"nbd+unix:///{volume}?socket={self.daemon.socket}"

    def path(self, name):
        path = os.path.join(self.folder, name)
        if os.path.exists(path):
            os.unlink(path)
        return path

    def make_image(self):
        """Every second MiB random, the others holes."""
        with open(self.image, "wb") as file:
            file.truncate(self.size)
            for at in range(0, self.size, 2 << 20):
                file.seek(at)
                file.write(os.urandom(1 << 20))

    def warm(self):
        """Makes as much memory as a run fills free again that was just in use."""
        path, block = self.path("ballast"), bytes(1 << 20)
        with open(path, "wb") as file:
            for _ in range(self.size // 2 + (128 << 20) >> 20):
                file.write(block)
        os.unlink(path)

    def check(self, path):
        timed("qemu-img", "compare", "-f", "raw", "-F", "raw", path, self.image)

    def exports(self, number):
        raw, peer = self.path("own.raw"), self.path("peer.raw")
        seconds = {
            "raw": lambda: self.pfcli("export_image", "-v", "bench", "-n", "s0", "--format", "raw", "-o", raw),
            "qemu-img": lambda: timed("qemu-img", "convert", "-f", "raw", "-O", "raw", self.uri("bench"), peer),
            "stream": lambda: self.pfcli("export_image", "-v", "bench", "-n", "s0", "--compress", "none", "-o", self.path("s0.stream")),
            "stream-lz4": lambda: self.pfcli("export_image", "-v", "bench", "-n", "s0", "--compress", "lz4", "-o", self.path("s0.lz4")),
        }
        found = in_turn(seconds, number, self.warm)
        if number == 0:
            self.check(raw)
            self.check(peer)
        for path in (raw, peer, self.path("s0.lz4")):
            if os.path.exists(path):
                os.unlink(path)
        return found

    def imports(self, number):
        stream = self.path("s0.stream")
        self.pfcli("export_image", "-v", "bench", "-n", "s0", "--compress", "none", "-o", stream)

        def fresh(run):
            seconds = run()
            if number == 0:
                self.check(self.uri("fresh"))
            self.pfcli("delete_volume", "-v", "fresh", "--snapshots")
            self.settle()
            return seconds

        def peer():
            self.pfcli("create_volume", "-v", "fresh", "-s", str(self.size))
            return timed("qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", self.image, self.uri("fresh"))

        found = in_turn({
            "raw": lambda: fresh(lambda: self.pfcli("import_image", "-v", "fresh", "-i", self.image)),
            "qemu-img": lambda: fresh(peer),
            "stream": lambda: fresh(lambda: self.pfcli("import_image", "-v", "fresh", "-i", stream)),
        }, number, self.warm)
        os.unlink(stream)
        return found

    def settle(self):
        """Until what was deleted has been given back."""
        last = None
        for _ in range(200):
            used = self.daemon.call("/v1/disks")["disks"][0]["usedBytes"]
            if used == last:
                return
            last = used
            time.sleep(0.1)

    def increments(self):
        dice, found, before = random.Random(1), [], "s0"
        for number, percent in enumerate(self.options.changes, 1):
            blocks = int(self.size * percent / 100 / 4096)
            places = dice.sample(range(self.size // 4096), blocks)
            for begin in range(0, blocks, 500):
                commands = [part for place in places[begin:begin + 500] for part in ("-c", f"write -q -P {dice.randrange(1, 255)} {place * 4096} 4096")]
                timed("qemu-io", "-f", "raw", *commands, self.uri("bench"))
            name = f"s{number}"
            self.pfcli("create_snapshot", "-v", "bench", "-n", name)
            times = []
            for _ in range(self.options.rounds):
                path = self.path("increment")
                times.append(self.pfcli("export_image", "-v", "bench", "-n", name, "--base", before, "--compress", "none", "-o", path))
            found.append({"changed_bytes": blocks * 4096, "stream_bytes": os.path.getsize(path), "seconds": statistics.median(times), "runs": times})
            before = name
        return found


def in_turn(sides, number, prepare):
    """Each once behind `prepare`, the first one another in every round."""
    names = list(sides)
    names = names[number % len(names):] + names[:number % len(names)]
    found = {}
    for name in names:
        prepare()
        found[name] = sides[name]()
    return found


def run(options, folder):
    bench = Bench(options, folder)
    rounds = {"export": [], "import": []}
    try:
        bench.daemon.start_whole()
        bench.make_image()
        bench.pfcli("import_image", "-v", "bench", "-i", bench.image)
        bench.pfcli("create_snapshot", "-v", "bench", "-n", "s0")
        for number in range(options.rounds):
            rounds["export"].append(bench.exports(number))
            rounds["import"].append(bench.imports(number))
        empty = statistics.median(bench.pfcli("list_volume") for _ in range(options.rounds))
        increments = bench.increments()
    finally:
        bench.daemon.stop()
    medians = {way: {side: statistics.median(r[side] for r in runs) for side in runs[0]} for way, runs in rounds.items()}
    ratios = {way: {side: m["qemu-img"] / seconds for side, seconds in m.items() if side != "qemu-img"} for way, m in medians.items()}
    lines = [f"{way}: qemu-img convert {medians[way]['qemu-img']:.2f} s; " + ", ".join(
        f"{side} {medians[way][side]:.2f} s ({ratio:.2f}x)" for side, ratio in sides.items()) for way, sides in ratios.items()]
    lines += [f"increment of {i['changed_bytes'] >> 20} MiB in 4 KiB pieces: {i['seconds']:.2f} s, stream {i['stream_bytes'] / i['changed_bytes']:.3f}x of the change"
              for i in increments]
    lines += [f"{way} without pfcli's start: " + ", ".join(
        f"{side} {medians[way]['qemu-img'] / (seconds - empty):.2f}x" for side, seconds in medians[way].items() if side != "qemu-img") for way in medians]
    lines.append(f"of each time of pfcli {empty:.2f} s are its start; target >= 1.0x: " + ("yes" if min(ratios[w]["raw"] for w in ratios) >= 1 else "NO"))
    return {"size_bytes": bench.size, "start_s": empty, "median_s": medians, "ratios": ratios, "rounds": rounds, "increments": increments}, "\n".join(lines)


def main():
    machine.stop_cleanly()
    parser = argparse.ArgumentParser(prog="bench/load/stream.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1g", help="of the volume (1g)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (5)")
    parser.add_argument("--changes", type=float, nargs="*", default=[0.5, 1, 2, 4], help="shares of the volume that increments change, in percent")
    parser.add_argument("--blockd", default=os.environ.get("BLOCKD", "out/blockd"))
    parser.add_argument("--blockd-options", default="")
    parser.add_argument("--folder", default="/dev/shm", help="where store and images lie (/dev/shm)")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    return run_bench("stream", run, options, options.folder)


if __name__ == "__main__":
    sys.exit(main())

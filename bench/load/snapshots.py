"""What snapshots and clones cost, each figure as a ratio to the same work without them, in one run of one daemon."""

import bisect
import glob
import os
import statistics
import threading
import time

import fio
import machine
from daemon import Daemon, verdict
from machine import BenchError

CUTS_AT_ONCE = 30
RANDOM = ["--bs=4k", "--iodepth=32", "--time_based=1", "--norandommap=1"]


class Bench:
    """One daemon, and volumes on it."""

    def __init__(self, options, folder):
        self.size = machine.parse_size(options.size or "1g")
        self.seconds = options.seconds or 2
        self.rounds = options.rounds or 3
        # Each snapshot takes a metadata slot, and slots are 2 % of a store.
        store = 10 * self.size + (options.snapshots << 20)
        machine.need_space(folder, store + self.size)
        self.folder = folder
        self.daemon = Daemon(folder, self.size, store, options.blockd, options.blockd_options.split(), with_api=True)
        self.daemon.relayout = "off"
        self.names = 0

    def target(self, volume):
        return ["--ioengine=nbd", f"--uri=nbd+unix:///{volume}?socket={self.daemon.socket}"]

    def fill(self, volume):
        fio.run(self.target(volume), [f"--size={self.size}", "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"], limit=3600)

    def random(self, volume, rw, seed, seconds=None, more=(), part=1):
        """Random I/O in the first bytes of the volume, a share of 1 / part."""
        arguments = [f"--size={self.size // part}", f"--rw={rw}", *RANDOM, f"--runtime={seconds or self.seconds}", f"--randseed={seed}", *more]
        return fio.run(self.target(volume), arguments, self.daemon.pid)

    def one_block_of_each_extent(self, volume, at):
        """Writes 4 KiB of every MiB; the I/O per second."""
        extents = self.size >> 20
        return fio.run(self.target(volume), [
            f"--offset={at * 4096}", f"--size={self.size - at * 4096}", f"--io_size={extents * 4096}", "--rw=write", "--bs=4k", "--iodepth=32",
            "--zonemode=strided", "--zonesize=4k", "--zoneskip=1020k"])["iops"]

    def new(self, volume):
        self.daemon.call("/v1/volumes", {"name": volume, "sizeBytes": self.size})
        self.fill(volume)

    def snapshot(self, volume):
        """Cuts one; its name, and the seconds that the call took."""
        self.names += 1
        name = f"s{self.names}"
        began = time.monotonic()
        self.daemon.call("/v1/snapshots", {"name": name, "volumes": [volume]})
        return name, time.monotonic() - began

    def delete_all(self, volume, names):
        for name in names:
            self.delete(volume, name)

    def delete(self, volume, snapshot):
        """Deletes one and waits until its blocks are free."""
        task = self.daemon.call(f"/v1/volumes/{volume}/snapshots/{snapshot}", method="DELETE")
        while task["state"] not in ("succeeded", "failed", "cancelled"):
            time.sleep(0.02)
            task = self.daemon.call(f"/v1/tasks/{task['id']}")
        if task["state"] != "succeeded":
            raise BenchError(f"deleting {snapshot} ended as {task}")


def median_ratio(sides):
    one, other = (statistics.median(values) for values in sides)
    return one / other


def pauses(bench, count):
    """The longest answer of 4k writes around each of many cuts, beside the longest of stretches of the same length without one, each
    behind a cut: so both see the machine at the same moments. In lots, since every snapshot keeps what is overwritten after it."""
    with_cut, without = [], []
    for lot in range(0, count, CUTS_AT_ONCE):
        found = pauses_of(bench, min(CUTS_AT_ONCE, count - lot), lot)
        with_cut += found[0]
        without += found[1]
    if len(with_cut) < count // 2:
        raise BenchError(f"only {len(with_cut)} cuts while fio ran")
    return sorted(with_cut), sorted(without)


def pauses_of(bench, count, number):
    log = os.path.join(bench.folder, f"lat{number}")
    rest = 0.1
    seconds = 2 + count * (2 * rest + 0.05)
    spans, names = [], []

    def cut_now_and_then():
        time.sleep(1.5)
        for _ in range(count):
            began = time.time()
            name, took = bench.snapshot("bench")
            names.append(name)
            spans.append((began, began + took + 0.02))
            time.sleep(2 * rest)

    cutter = threading.Thread(target=cut_now_and_then)
    cutter.start()
    bench.random("bench", "randwrite", number, seconds, [f"--write_lat_log={log}", "--log_unix_epoch=1"], part=8)
    cutter.join()
    if len(spans) < count:
        raise BenchError("a snapshot could not be cut, see above")
    bench.delete_all("bench", names)
    answers = []
    for path in glob.glob(log + "_clat*.log"):
        with open(path, encoding="ascii") as file:
            for line in file:
                at, nanos = line.split(",")[:2]
                answers.append((int(at) / 1000, int(nanos) / 1e6))
    answers.sort()
    times = [at for at, _ in answers]
    spans = [span for span in spans if span[1] + rest < times[-1]]  # a slow machine cuts behind fio's end

    def longest(begin, end):
        return max((ms for _, ms in answers[bisect.bisect_left(times, begin):bisect.bisect_right(times, end)]), default=0)

    return [longest(*span) for span in spans], [longest(end + rest / 2, end + rest / 2 + end - begin) for begin, end in spans]


def first_writes(bench):
    sides = ([], [])
    for number in range(bench.rounds):
        plain = bench.one_block_of_each_extent("bench", 2 * number)
        name, _ = bench.snapshot("bench")
        sides[0].append(plain)
        sides[1].append(bench.one_block_of_each_extent("bench", 2 * number + 1))
        bench.delete("bench", name)
    return median_ratio(sides)


def deep_clone(bench):
    """Reads of a clone ten deep, each a little overwritten, beside reads of the volume that it began with."""
    top = "bench"
    for depth in range(10):
        bench.daemon.call(f"/v1/volumes/{top}/clone", {"name": f"clone{depth}"})
        top = f"clone{depth}"
        bench.random(top, "randwrite", depth, 0.3, part=8)
    sides = ([], [])
    for number in range(bench.rounds):
        sides[0].append(bench.random(top, "randread", number)["iops"])
        sides[1].append(bench.random("bench", "randread", number)["iops"])
    return median_ratio(sides)


def many(bench, count):
    """A volume with many snapshots beside one without; reads and writes."""
    bench.new("plain")
    bench.new("many")
    took = 0
    for number in range(count):
        took += bench.snapshot("many")[1]
        if number % max(1, count // 50) == 0:
            bench.random("many", "randwrite", number, 0.05, part=16)
    bench.random("many", "randwrite", 7, 1)  # the pages of the last layer are there
    ratios = {}
    for rw in ("randread", "randwrite"):
        sides = ([], [])
        for number in range(bench.rounds):
            sides[0].append(bench.random("many", rw, number)["iops"])
            sides[1].append(bench.random("plain", rw, number)["iops"])
        ratios[rw] = median_ratio(sides)
    return ratios, took / count


def deletion(bench):
    """Random writes while one snapshot after the other is deleted, beside the same without: the ratio, the seconds that one takes
    under load and without, and the share of the time under load in which one was going."""
    sides, took, idle, shares = ([], []), [], [], []
    for number in range(bench.rounds):
        names = []
        for part in range(12):
            names.append(bench.snapshot("plain")[0])
            bench.random("plain", "randwrite", 100 + 12 * number + part, 0.2, part=4)
        ended = threading.Event()

        def delete_until_the_end():
            while len(names) > 2 and not ended.is_set():
                began = time.monotonic()
                bench.delete("plain", names.pop(0))
                took.append(time.monotonic() - began)

        before = len(took)
        worker = threading.Thread(target=delete_until_the_end)
        worker.start()
        sides[0].append(bench.random("plain", "randwrite", number, part=4)["iops"])
        ended.set()
        worker.join()
        shares.append(min(1, sum(took[before:]) / bench.seconds))
        while names:
            began = time.monotonic()
            bench.delete("plain", names.pop(0))
            idle.append(time.monotonic() - began)
        sides[1].append(bench.random("plain", "randwrite", number, part=4)["iops"])
    return median_ratio(sides), statistics.median(took), statistics.median(idle or [0]), statistics.median(shares)


PARTS = ["pauses", "first", "clone", "many", "deletion"]


def run(options, folder):
    """What snapshots cost: the pause of a cut, the first write after one, a clone ten deep, many of them, deletion under load."""
    bench = Bench(options, folder)
    parts, figures, lines = options.only or PARTS, {}, []
    try:
        bench.daemon.start_whole()
        _, empty = bench.snapshot("bench")
        bench.fill("bench")
        full = statistics.median(bench.snapshot("bench")[1] for _ in range(5))
        figures.update(size=bench.size, create_empty_s=empty, create_full_s=full)
        lines.append(f"snapshots: a cut takes {empty * 1000:.1f} ms on an empty volume, {full * 1000:.1f} ms on a full one of {bench.size / 2**30:g} GiB")
        if "pauses" in parts:
            with_cut, without = pauses(bench, options.cuts)
            figures["longest_write_ms"] = {"with": with_cut, "without": without}
            p99, control = (side[int(len(side) * 0.99)] for side in (with_cut, without))
            lines.append(
                f"longest write around one of {len(with_cut)} cuts: median {statistics.median(with_cut):.1f}, p99 {p99:.1f}, largest {with_cut[-1]:.1f} ms under "
                f"4k random writes QD32; in stretches as long between them: median {statistics.median(without):.1f}, p99 {control:.1f}, largest {without[-1]:.1f}; "
                f"target < 5 ms: {verdict(p99 < 5)}")
        if "first" in parts:
            first = figures["first_write_ratio"] = first_writes(bench)
            lines.append(f"first write to an extent after a cut: {first:.2f}x of the time of a plain one, QD32; target <= 1.3x: {verdict(first <= 1.3)}")
        if "clone" in parts:
            clone = figures["clone_read_ratio"] = deep_clone(bench)
            lines.append(f"reads of a clone ten deep: {clone:.2f}x of a plain volume, 4k QD32; target >= 0.9x: {verdict(clone >= 0.9)}")
        if "many" in parts:
            ratios, create = many(bench, options.snapshots)
            figures.update(snapshots=options.snapshots, many_ratios=ratios, create_s=create)
            lines.append(
                f"{options.snapshots} snapshots on one volume ({create * 1000:.1f} ms each): reads {ratios['randread']:.2f}x, writes {ratios['randwrite']:.2f}x "
                f"of a volume without; target >= 0.95x at 10000: {verdict(min(ratios.values()) >= 0.95)}")
        if "deletion" in parts:
            if "many" not in parts:
                bench.new("plain")
            delete, under, idle, share = deletion(bench)
            figures.update(delete_ratio=delete, deleting_s=under, deleting_idle_s=idle, deleting_share=share)
            lines.append(
                f"random writes while snapshots are deleted, {share * 100:.0f} % of the time, each in {under:.2f} s ({idle:.2f} s without load): {delete:.2f}x; "
                f"target >= 0.8x: {verdict(delete >= 0.8)}")
    finally:
        bench.daemon.stop()
    return figures, "\n".join(lines)

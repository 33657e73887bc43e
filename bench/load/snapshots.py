"""What snapshots and clones cost, each figure as a ratio to the same work without them, in one run of one daemon."""

import bisect
import glob
import http.client
import json
import os
import random
import re
import statistics
import threading
import time

import fio
import machine
from daemon import Daemon, verdict
from machine import BenchError

CUTS_AT_ONCE = 30
KINDS = ["cut", "commit", "nothing"]
STRETCH, REST = 0.05, 0.05  # seconds that are looked at after each, and between two
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


class Kept:
    """One connection to the admin API that stays open, so that the client costs the machine as little as it can."""

    def __init__(self, daemon):
        token = machine.read(os.path.join(daemon.data, "admin.token")).strip()
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.connection = http.client.HTTPConnection("127.0.0.1", daemon.api, timeout=30)
        self.connection.connect()

    def call(self, method, path, body=None):
        self.connection.request(method, path, body and json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        text = answer.read().decode(errors="replace")
        if answer.status >= 300:
            raise BenchError(f"{path}: {answer.status} {text}")
        return text

    def held(self):
        """How long the store held changes back for all cuts so far: of how many, of how many for less than 4.096 ms, the longest in ms."""
        found = dict(re.findall(r"^blockd_disk_cut_pause_(count|max_seconds|seconds_count|seconds_bucket{[^}]*le=\"0.004096\"})(?:{[^}]*})? (\S+)$",
                                self.call("GET", "/metrics"), re.MULTILINE))
        short = next((float(value) for name, value in found.items() if "bucket" in name), 0)
        return int(float(found.get("seconds_count", 0))), int(short), 1000 * float(found.get("max_seconds", 0))


def pauses(bench, count):
    """The longest answer of 4k writes in stretches of the same length, by what the stretch begins with: a cut; a call that writes
    metadata as a cut does and cuts nothing; nothing. In an order that is drawn, so that all see the machine at the same moments.
    In lots, since every snapshot keeps what is overwritten after it. The first lot is not counted: in a daemon that has just begun
    the just-in-time compiler is at work. With it what the store says of how long it held changes back."""
    api = Kept(bench.daemon)
    longest = {kind: [] for kind in KINDS}
    pauses_of(bench, api, CUTS_AT_ONCE, count)
    before = api.held()
    for lot in range(0, count, CUTS_AT_ONCE):
        for kind, found in pauses_of(bench, api, min(CUTS_AT_ONCE, count - lot), lot).items():
            longest[kind] += found
    if min(len(found) for found in longest.values()) < count // 2:
        raise BenchError(f"only {min(len(found) for found in longest.values())} stretches of a kind while fio ran")
    after = api.held()
    held = {"cuts": after[0] - before[0], "below_4.1_ms": after[1] - before[1], "longest_ms_since_start": after[2]}
    return {kind: sorted(found) for kind, found in longest.items()}, held


def pauses_of(bench, api, count, number):
    log = os.path.join(bench.folder, f"lat{number}")
    order = [kind for kind in KINDS for _ in range(count)]
    random.Random(number).shuffle(order)
    seconds = 3 + len(order) * 1.15 * (STRETCH + REST)
    begun, names = [], []

    def do_all():
        time.sleep(1.5)
        for kind in order:
            began = time.time()
            if kind == "cut":
                bench.names += 1
                names.append(f"s{bench.names}")
                api.call("POST", "/v1/snapshots", {"name": names[-1], "volumes": ["bench"]})
            elif kind == "commit":
                bench.names += 1
                api.call("PATCH", "/v1/volumes/bench", {"description": f"change {bench.names}"})
            begun.append((kind, began))
            time.sleep(max(0, began + STRETCH - time.time()) + REST)

    worker = threading.Thread(target=do_all)
    worker.start()
    bench.random("bench", "randwrite", number, seconds, [f"--write_lat_log={log}", "--log_unix_epoch=1"], part=8)
    worker.join()
    if len(begun) < len(order):
        raise BenchError("a call failed, see above")
    bench.delete_all("bench", names)
    answers = []
    for path in glob.glob(log + "_clat*.log"):
        with open(path, encoding="ascii") as file:
            for line in file:
                at, nanos = line.split(",")[:2]
                answers.append((int(at) / 1000, int(nanos) / 1e6))
    answers.sort()
    times = [at for at, _ in answers]
    found = {kind: [] for kind in KINDS}
    for kind, began in begun:
        if began + STRETCH > times[-1]:
            continue  # a slow machine is not done when fio is
        inside = answers[bisect.bisect_left(times, began):bisect.bisect_right(times, began + STRETCH)]
        found[kind].append(max((ms for _, ms in inside), default=STRETCH * 1000))
    return found


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
            longest, held = pauses(bench, options.cuts)
            figures["longest_write_ms"], figures["held"] = longest, held
            said = {kind: f"median {statistics.median(v):.1f}, p99 {v[int(len(v) * 0.99)]:.1f}, largest {v[-1]:.1f} ms" for kind, v in longest.items()}
            p99 = longest["cut"][int(len(longest["cut"]) * 0.99)]
            lines.append(
                f"longest 4k random write, QD32, in {STRETCH * 1000:.0f} ms from one of {len(longest['cut'])} cuts: {said['cut']}; from a call that cuts nothing: "
                f"{said['commit']}; from nothing: {said['nothing']}; target < 5 ms: {verdict(p99 < 5)}")
            lines.append(
                f"the store held changes back for less than 4.1 ms in {held['below_4.1_ms']} of {held['cuts']} cuts, the longest since its start "
                f"{held['longest_ms_since_start']:.2f} ms")
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

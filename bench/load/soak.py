"""Hours of mixed load on one daemon, every byte of it verified: NBD and iSCSI writers, groups of snapshots, clones, streams, appends,
clients that come, go and talk nonsense. Ends at the first wrong byte; at the end nothing may have leaked: no block of the
store, no file descriptor, and of the memory only what --growth allows.

Run it by soak.sh.
"""

import argparse
import hashlib
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid

import fio
import machine
from daemon import Daemon, run_bench, verdict
from machine import BenchError, read
from servers import free_port

MIB = 1 << 20
KEPT = 5  # snapshots of the group at most


def must(*command, limit=300):
    """Runs a program that must end with 0; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}\nended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


class Node(Daemon):
    """The daemon under the load: NBD on a unix socket, iSCSI and the API on free ports."""

    def __init__(self, folder, store, options):
        super().__init__(folder, 0, store, options.blockd, options.blockd_options.split(), with_api=True)
        self.iscsi = free_port()
        self.tools = os.path.dirname(os.path.abspath(options.blockd))

    def command(self, transport):
        return [*super().command(transport), "--iscsi", f"127.0.0.1:{self.iscsi}"]

    def uri(self, volume):
        return f"nbd+unix:///{volume}?socket={self.socket}"

    def pfcli(self, *arguments):
        return must(os.path.join(self.tools, "pfcli"), "--server", f"http://127.0.0.1:{self.api}", "--token-file", self.data + "/admin.token", "-y", *arguments)

    def delete(self, volume):
        self.call(f"/v1/volumes/{volume}?id={self.call(f'/v1/volumes/{volume}')['id']}&snapshots=true", method="DELETE")

    def used(self):
        return self.disk()["usedBytes"]

    def raw(self, path, body=None):
        """A request whose body, or answer, is bytes."""
        token = read(os.path.join(self.data, "admin.token")).strip()
        request = urllib.request.Request(f"http://127.0.0.1:{self.api}{path}", body,
                                         {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def sample(self):
        """RSS in bytes, open descriptors, threads."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return int(fields["VmRSS"].split()[0]) * 1024, len(os.listdir(f"/proc/{self.pid}/fd")), int(fields["Threads"])


class Soak:
    """The load: each actor does one round of its work after the other, with a pause between, until the end."""

    def __init__(self, node, options, folder):
        self.node = node
        self.size = machine.parse_size(options.size)
        self.pause = options.pause
        self.folder = folder
        self.dice = random.Random(options.seed)
        self.ended = threading.Event()
        self.faults = []
        self.rounds = {}
        self.snapshots = []
        self.p99 = []
        self.next = 0

    def actor(self, name, work):
        def live():
            while not self.ended.is_set():
                try:
                    work()
                    self.rounds[name] = self.rounds.get(name, 0) + 1
                except Exception as e:  # pylint: disable=broad-except # Whatever it is, it ends the run and is shown.
                    self.faults.append(f"{name}, round {self.rounds.get(name, 0) + 1}: {type(e).__name__}: {e}")
                    self.ended.set()
                    return
                self.ended.wait(self.pause)
        return threading.Thread(target=live, name=name)

    def prepare(self):
        for volume in ("one", "two", "lun", "probe"):
            self.node.call("/v1/volumes", {"name": volume, "sizeBytes": self.size})
        fio.run(["--ioengine=nbd", f"--uri={self.node.uri('probe')}"], ["--rw=write", "--bs=1M", "--iodepth=4", f"--size={self.size}"], limit=600)

    def verified(self, volume):
        """Random writes by fio, then all that was written read back; rewritten with another seed each round."""
        def work():
            must("fio", "--name=soak", "--thread=1", "--eta=never", "--ioengine=nbd", f"--uri={self.node.uri(volume)}", "--rw=randwrite", "--bsrange=4k-64k",
                 f"--size={self.size}", "--io_size=8m", "--iodepth=8", "--rate_iops=200", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
                 f"--randseed={self.dice.getrandbits(31)}", f"--aux-path={self.folder}")
        return work

    def lun(self):
        url = f"iscsi://127.0.0.1:{self.node.iscsi}/iqn.2026-11.org.blockserver:lun/0"
        commands = []
        for _ in range(8):
            at, length, byte = self.dice.randrange(self.size // 4096 - 64) * 4096, 4096 * self.dice.randint(1, 64), self.dice.randint(1, 255)
            commands += ["-c", f"write -P {byte} {at} {length}", "-c", f"read -P {byte} {at} {length}"]
        said = must("qemu-io", "-f", "raw", *commands, "-c", "flush", url)
        if "failed" in said or "mismatch" in said:
            raise BenchError(said)

    def group(self):
        """A snapshot of two volumes at one moment; a clone of it now and then, compared and deleted; the oldest goes."""
        self.next += 1
        name = f"s{self.next}"
        self.node.call("/v1/snapshots", {"name": name, "volumes": ["one", "two"]})
        self.snapshots.append(name)
        if self.next % 4 == 0:
            self.node.call("/v1/volumes/one/clone", {"name": "copy", "snapshot": name})
            must("qemu-img", "compare", "-f", "raw", "-F", "raw", self.node.uri("copy"), self.node.uri(f"one@{name}"))
            self.node.delete("copy")
            self.until_gone("copy")
        if len(self.snapshots) > KEPT:
            oldest = self.snapshots.pop(0)
            for volume in ("one", "two"):
                self.node.call(f"/v1/volumes/{volume}/snapshots/{oldest}", method="DELETE")

    def until_gone(self, volume):
        for _ in range(600):
            if volume not in [v["name"] for v in self.node.call("/v1/volumes")["volumes"]]:
                return
            time.sleep(0.05)
        raise BenchError(f"{volume} was deleted and is still there")

    def stream(self):
        """A volume leaves as a stream, comes back as another one, and is the same."""
        file = os.path.join(self.folder, "stream")
        self.node.pfcli("create_snapshot", "-v", "two", "-n", "leaves")
        self.node.pfcli("export_image", "-v", "two", "-n", "leaves", "-o", file)
        self.node.pfcli("import_image", "-v", "came", "-i", file)
        must("qemu-img", "compare", "-f", "raw", "-F", "raw", self.node.uri("came"), self.node.uri("two@leaves"))
        self.node.delete("came")
        self.node.pfcli("delete_snapshot", "-v", "two", "-n", "leaves")
        os.unlink(file)
        self.until_gone("came")

    def append(self):
        """A log that is appended to, each append sent twice now and then, read back, sealed, put in the place of the last, and deleted."""
        self.node.call("/v1/aof", {"name": "log.new"})
        client, content, length = uuid.uuid4(), hashlib.sha256(), 0
        for sequence in range(1, 65):
            part = self.dice.randbytes(self.dice.randint(1, 65536))
            for _ in range(2 if sequence % 8 == 0 else 1):
                self.node.raw(f"/v1/volumes/log.new/append?client={client}&sequence={sequence}", part)
            content.update(part)
            length += len(part)
        came = self.node.raw(f"/v1/volumes/log.new/data?offset=0&length={length}")
        while len(came) < length:
            came += self.node.raw(f"/v1/volumes/log.new/data?offset={len(came)}&length={length - len(came)}")
        if len(came) != length or hashlib.sha256(came).digest() != content.digest():
            raise BenchError(f"{length} bytes were appended, and not these are there ({len(came)})")
        self.node.pfcli("aof_seal", "-v", "log.new")
        self.node.pfcli("aof_rename", "-v", "log.new", "-n", "log", "--replace")

    def visitors(self):
        """Clients that look and go, and some that talk nonsense or nothing."""
        must("nbdinfo", "--size", self.node.uri("one"))
        must("nbdinfo", "--map", self.node.uri("two"))
        for address, family in ((self.node.socket, socket.AF_UNIX), (("127.0.0.1", self.node.iscsi), socket.AF_INET), (("127.0.0.1", self.node.api), socket.AF_INET)):
            with socket.socket(family) as nonsense:
                nonsense.settimeout(15)
                nonsense.connect(address)
                nonsense.sendall(self.dice.randbytes(self.dice.randint(0, 4096)))

    def probe(self):
        """How long a read takes beside all that."""
        found = fio.run(["--ioengine=nbd", f"--uri={self.node.uri('probe')}"],
                        ["--rw=randread", "--bs=4k", "--iodepth=1", "--norandommap=1", f"--size={self.size}", "--time_based=1", "--runtime=2"])
        self.p99.append((time.monotonic(), found["p99_us"]))

    def run(self, seconds):
        """Samples of (seconds, RSS, descriptors, threads)."""
        actors = [self.actor(name, work) for name, work in {
            "nbd one": self.verified("one"), "nbd two": self.verified("two"), "iscsi": self.lun, "groups": self.group, "streams": self.stream,
            "appends": self.append, "visitors": self.visitors, "probe": self.probe}.items()]
        began = time.monotonic()
        samples = []
        for actor in actors:
            actor.start()
        while not self.ended.wait(5) and time.monotonic() - began < seconds:
            samples.append((time.monotonic() - began, *self.node.sample()))
        self.ended.set()
        for actor in actors:
            actor.join()
        if self.faults:
            raise BenchError("\n".join([*self.faults, self.node.said()]))
        return samples

    def empty(self):
        """Deletes everything; bytes that the store still calls used."""
        for volume in [v["name"] for v in self.node.call("/v1/volumes")["volumes"]]:
            self.node.delete(volume)
        for _ in range(600):
            if self.node.used() == 0:
                return 0
            time.sleep(0.1)
        return self.node.used()


def part(samples, index, begin, end):
    """Median of a column over a part of the run."""
    chosen = samples[int(len(samples) * begin):max(int(len(samples) * end), int(len(samples) * begin) + 1)]
    return statistics.median(row[index] for row in chosen)


def soak(options, folder):
    size = machine.parse_size(options.size)
    store = 24 * size + (1 << 30)
    machine.need_space(folder, store)
    node = Node(folder, store, options)
    try:
        node.start_ready()
        load = Soak(node, options, folder)
        load.prepare()
        samples = load.run(options.hours * 3600)
        if len(samples) < 8:
            raise BenchError("that was too short to say anything: --hours 0.02 at least")
        left = load.empty()
        # What came before the code was compiled and the pools were filled is no yardstick.
        memory = [part(samples, 1, 0.4, 0.6), part(samples, 1, 0.8, 1)]
        files = [part(samples, 2, 0.4, 0.6), part(samples, 2, 0.8, 1)]
        p99 = [part(load.p99, 1, 0.2, 0.5), part(load.p99, 1, 0.7, 1)]
        node.stop()
        checked = must(os.path.join(node.tools, "pfinspect"), "verify", os.path.join(node.data, "store-0.blk"), limit=3600)
    finally:
        node.stop()
    growth = memory[1] / memory[0] - 1
    lines = [f"{options.hours} h, {sum(load.rounds.values())} rounds without a wrong byte: " + ", ".join(f"{name} {count}" for name, count in sorted(load.rounds.items())),
             f"memory (RSS) {memory[0] / MIB:.1f} MiB in the middle, {memory[1] / MIB:.1f} MiB at the end: {100 * growth:+.1f} % (target {100 * options.growth:.0f} %: {verdict(growth <= options.growth)})",
             f"open files {files[0]:.0f} in the middle, {files[1]:.0f} at the end; threads {part(samples, 3, 0.4, 0.6):.0f}, {part(samples, 3, 0.8, 1):.0f}",
             f"p99 of a read beside it all {p99[0]:.0f} us early, {p99[1]:.0f} us late",
             f"after everything was deleted the store uses {left} bytes (target 0: {verdict(left == 0)})",
             "pfinspect verify: " + checked.strip().splitlines()[-1]]
    return {"rounds": load.rounds, "rss": memory, "growth": growth, "files": files, "p99_us": p99, "left_bytes": left, "samples": samples[::max(1, len(samples) // 500)]}, "\n".join(lines)


def main():
    machine.stop_cleanly()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blockd", default="out/blockd", help="pfcli and pfinspect are taken from the same folder")
    parser.add_argument("--blockd-options", default="", help="more options of the daemon")
    parser.add_argument("--folder", default=".", help="where the store lies")
    parser.add_argument("--size", default="64m", help="of each volume")
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--pause", type=float, default=1, help="seconds between two rounds of an actor")
    parser.add_argument("--growth", type=float, default=0.02, help="part by which the memory may grow between the middle and the end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write every figure here")
    options = parser.parse_args()
    return run_bench("soak", soak, options, options.folder)


if __name__ == "__main__":
    sys.exit(main())

"""The servers under comparison. Each serves one volume from a folder on the backing, and is ended by its pid."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import fio
from machine import BenchError, read


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Detached:
    """A server that went to the background: what of Popen is used here, for a process that is not our child."""

    def __init__(self, pid):
        self.pid = pid
        self.returncode = None

    def poll(self):
        return None if os.path.exists(f"/proc/{self.pid}") else 0

    def wait(self, limit=60):
        end = time.monotonic() + limit
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), limit)
            time.sleep(0.02)

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


class Server:
    """A server program, its files, and how fio reaches it."""

    name = ""
    needs_factor = 1.0  # bytes on the backing per byte of the volume
    greets = ("unix", "tcp")  # transports on which the server speaks first

    def __init__(self, folder, size, direct):
        self.folder = os.path.join(folder, self.name)
        os.makedirs(self.folder, exist_ok=True)
        self.file = os.path.join(self.folder, "file")
        self.size = size
        self.direct = direct
        self.process = None
        self.port = None
        self.environment = {}

    @property
    def pid(self):
        return self.process.pid if self.process else None

    @property
    def socket(self):
        return os.path.join(self.folder, "s")

    def note(self):
        """What the reader must know of how it runs."""
        return ""

    def prepare(self):
        """Fills the file with random data, before the server first starts."""
        fill(["--ioengine=io_uring", f"--filename={self.file}", f"--direct={int(self.direct)}"], self.size, end="--end_fsync=1")

    def command(self, transport):
        raise NotImplementedError

    def export(self):
        return ""

    def start(self, transport):
        self.port = free_port()
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = self.launch(transport)
        self.wait(transport)

    def launch(self, transport):
        with open(os.path.join(self.folder, "log"), "ab") as log:
            return subprocess.Popen(self.command(transport), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env={**os.environ, **self.environment})

    def wait(self, transport):
        """Waits until the server accepts a connection."""
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise BenchError(f"{self.name} ended with {self.process.returncode}: {' '.join(self.command(transport))}\n{self.said()}")
            family, address = (socket.AF_UNIX, self.socket) if transport == "unix" else (socket.AF_INET, ("127.0.0.1", self.port))
            with socket.socket(family) as probe:
                probe.settimeout(5)
                try:
                    probe.connect(address)
                    if transport in self.greets:
                        probe.recv(8)
                    return
                except OSError:
                    time.sleep(0.02)
        raise BenchError(f"{self.name} does not listen:\n{self.said()}")

    def said(self):
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as log:
            return log.read()[-3000:]

    def target(self, transport):
        uri = f"nbd+unix:///{self.export()}?socket={self.socket}" if transport == "unix" else f"nbd://127.0.0.1:{self.port}/{self.export()}"
        return ["--ioengine=nbd", f"--uri={uri}"]

    def stop(self):
        if not self.process:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None


class Blockd(Server):
    """Our daemon: a store file on the backing, one volume, checksums on, durability flush."""

    name = "blockd"
    needs_factor = 2.5

    def __init__(self, folder, size, direct, program="out/blockd", options=()):
        super().__init__(folder, size, direct)
        self.program = os.path.abspath(program)
        self.options = list(options)
        self.relayout = "off"  # its work between two runs would be noise in those of the peers
        self.knows_relayout = None
        self.api = None

    def command(self, transport):
        listen = f"unix:{self.socket}" if transport == "unix" else f"127.0.0.1:{self.port}"
        return [self.program, "--data-dir", self.data, "--nbd", listen, "--api", f"127.0.0.1:{self.api}" if self.api else "none",
                "--store-size", str(int(self.size * 2.4) + (256 << 20)), "--create-volume", f"bench:{self.size}", *self.layout(), *self.options]

    def layout(self):
        if self.knows_relayout is None:
            told = subprocess.run([self.program, "--help"], capture_output=True, text=True, timeout=30, check=False).stdout
            self.knows_relayout = "--relayout" in told  # builds of older commits do not
        return ["--relayout", self.relayout] if self.knows_relayout and "--relayout" not in self.options else []

    @property
    def data(self):
        return os.path.join(self.folder, "data")

    def export(self):
        return "bench"

    def prepare(self):
        self.start("unix")
        fill(self.target("unix"), self.size)
        self.stop()
        self.make_whole()

    def make_whole(self):
        """Writes what the store has not touched of its file, so that it exists like the peers' files: the backing would else
        allocate with nearly every write, which it does for a peer only while the file is filled. What the file holds stays."""
        path, zeros = os.path.join(self.data, "store-0.blk"), bytes(1 << 20)
        with open(path, "r+b", buffering=0) as file:
            size, at = os.path.getsize(path), 0
            while (at := hole(file.fileno(), at, size)) < size:
                end = data(file.fileno(), at, size)
                while at < end:
                    at += os.pwrite(file.fileno(), zeros[:min(len(zeros), end - at)], at)
            os.fsync(file.fileno())

    def note(self):
        return " ".join(["durability flush, checksums on, the store's file written in full first", *self.options])

    def call(self, path, body=None, method=None):
        """A request to the admin API: a POST, or a GET when there is no body, or what is said."""
        token = read(os.path.join(self.data, "admin.token")).strip()
        request = urllib.request.Request(f"http://127.0.0.1:{self.api}{path}", body and json.dumps(body).encode(),
                                         {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as e:
            raise BenchError(f"{path}: {e.code} {e.read().decode(errors='replace')}") from None

    def disk(self):
        return self.call("/v1/disks")["disks"][0]

    def left_scattered(self):
        try:
            return self.disk()["scatteredExtents"]
        except urllib.error.URLError:
            return 1  # the API is not there yet

    def lay_out(self, transport, limit=900):
        """Starts anew with relayout and waits until it has nothing left to do or does nothing more for half a minute;
        seconds that took."""
        self.stop()
        self.relayout, self.api = "on", free_port()
        self.start(transport)
        began = changed = time.monotonic()
        left = None
        while (now := self.left_scattered()) > 0 and time.monotonic() - changed < 30:
            if now != left:
                left, changed = now, time.monotonic()
            if time.monotonic() - began > limit:
                raise BenchError(f"relayout is not done after {limit} s:\n{self.said()}")
            time.sleep(0.5)
        return time.monotonic() - began


class QemuNbd(Server):
    name = "qemu-nbd"

    def modes(self):
        return ["--cache=none", "--aio=io_uring"] if self.direct else ["--cache=writeback", "--aio=threads"]

    def note(self):
        return " ".join(self.modes()) + ("" if self.direct else " (the backing refuses O_DIRECT)")

    def command(self, transport):
        where = ["-k", self.socket] if transport == "unix" else ["-b", "127.0.0.1", "-p", str(self.port)]
        return ["qemu-nbd", "-f", "raw", *self.modes(), "--shared=64", "--persistent", *where, self.file]


class Nbdkit(Server):
    name = "nbdkit"

    def note(self):
        return "file cache=none (the page cache, dropped behind)"

    def command(self, transport):
        where = ["-U", self.socket] if transport == "unix" else ["-i", "127.0.0.1", "-p", str(self.port)]
        return ["nbdkit", "-f", *where, "file", f"file={self.file}", "cache=none"]


class NbdServer(Server):
    name = "nbd-server"

    def note(self):
        return "page cache, one process per connection"

    def command(self, transport):
        config = os.path.join(self.folder, "config")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[generic]\n  unixsock = {self.socket}\n  listenaddr = 127.0.0.1\n  port = {self.port}\n  allowlist = true\n"
                       f"[bench]\n  exportname = {self.file}\n")
        return ["nbd-server", "-C", config, "-p", os.path.join(self.folder, "pid")]

    def launch(self, transport):
        # With -d it serves one connection only, so it goes to the background; its pid is in a file.
        path = os.path.join(self.folder, "pid")
        if os.path.exists(path):
            os.unlink(path)
        starter = super().launch(transport)
        starter.wait(30)
        limit = time.monotonic() + 10
        while not (os.path.exists(path) and read(path).strip()):
            if time.monotonic() > limit:
                raise BenchError(f"nbd-server did not start:\n{self.said()}")
            time.sleep(0.02)
        return Detached(int(read(path)))

    def export(self):
        return "bench"


class Raw(Server):
    """No server: the file itself by fio's io_uring engine. The ceiling of the backing."""

    name = "raw"

    def note(self):
        return "fio io_uring, direct" if self.direct else "fio io_uring, page cache (the backing refuses O_DIRECT)"

    def start(self, transport):
        pass

    def target(self, transport):
        return ["--ioengine=io_uring", f"--filename={self.file}", f"--direct={int(self.direct)}"]


def hole(fd, at, size):
    """Where the next hole of a file begins, or its size."""
    return min(os.lseek(fd, at, os.SEEK_HOLE), size) if at < size else size


def data(fd, at, size):
    """Where the next data of a file begins, or its size."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # ENXIO: there is none
        return size


def fill(target, size, end="--end_fsync=0"):
    """Every block of the volume written with data that does not compress."""
    fio.run([*target, f"--size={size}"], ["--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1", end])


PEERS = {peer.name: peer for peer in (QemuNbd, Nbdkit, NbdServer, Raw)}

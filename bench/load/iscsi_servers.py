"""The iSCSI targets under comparison. Each serves LUNS disks from a folder on the backing, and is ended by its pid."""

import os
import subprocess

import servers
from machine import BenchError
from servers import Server, fill, free_port

# Disks of every server: the first of the full size, and smaller ones for the lines with several sessions.
LUNS = 4
LATER_SHARE = 4


class IscsiServer(Server):
    """A server of several disks: files beside each other, and an address for each."""

    name = ""
    needs_factor = 1.0 + (LUNS - 1) / LATER_SHARE
    greets = ("unix",)

    def sizes(self):
        return [self.size] + [self.size // LATER_SHARE] * (LUNS - 1)

    def files(self):
        return [self.file + str(lun) for lun in range(LUNS)]

    def prepare(self):
        for path, size in zip(self.files(), self.sizes()):
            fill(["--ioengine=io_uring", f"--filename={path}", f"--direct={int(self.direct)}"], size, end="--end_fsync=1")

    def target(self, lun):
        """(name of the target, LUN) of a disk."""
        raise NotImplementedError

    def url(self, lun):
        name, number = self.target(lun)
        return f"iscsi://127.0.0.1:{self.port}/{name}/{number}"


class Blockd(IscsiServer, servers.Blockd):
    """Our daemon: a store file on the backing, a target for each volume, checksums on, durability flush."""

    name = "blockd"
    needs_factor = 2.5 * IscsiServer.needs_factor

    def command(self, transport):
        volumes = [f"--create-volume=bench{lun}:{size}" for lun, size in enumerate(self.sizes())]
        return [self.program, "--data-dir", os.path.join(self.folder, "data"), "--nbd", f"unix:{self.socket}", "--api", "none",
                "--iscsi", f"127.0.0.1:{self.port}", "--store-size", str(int(sum(self.sizes()) * 2.2) + (256 << 20)), *volumes, *self.layout(), *self.options]

    def prepare(self):
        self.start("tcp")
        for lun, size in enumerate(self.sizes()):
            fill(["--ioengine=nbd", f"--uri=nbd+unix:///bench{lun}?socket={self.socket}"], size)
        self.stop()
        self.make_whole()

    def wait(self, transport):
        for side in ("unix", "tcp"):
            super().wait(side)

    def target(self, lun):
        return f"iqn.2026-11.org.blockserver:bench{lun}", 0


class Tgt(IscsiServer):
    """One tgtd process with a target of several LUNs; LUN 0 is its controller."""

    store = ""
    is_direct = False

    def prepare(self):
        super().prepare()
        self.control = os.path.join(self.folder, "control")
        self.environment = {"TGT_IPC_SOCKET": self.control}

    def command(self, transport):
        return ["tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{self.port}"]

    def admin(self, *arguments):
        done = subprocess.run(["tgtadm", "--lld", "iscsi", *arguments], capture_output=True, text=True, timeout=30, check=False,
                              env={**os.environ, **self.environment})
        if done.returncode != 0:
            raise BenchError(f"tgtadm {' '.join(arguments)} ended with {done.returncode}: {done.stderr}{self.said()}")

    def wait(self, transport):
        super().wait(transport)
        name, _ = self.target(0)
        self.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", name)
        for lun, path in enumerate(self.files()):
            flags = ["--bsoflags", "direct"] if self.is_direct and self.direct else []
            self.admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun + 1), "-b", path, "--bstype", self.store, *flags)
        self.admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    def target(self, lun):
        return "iqn.2001-04.com.example:bench", lun + 1

    def stop(self):
        # It does not end by SIGTERM.
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None


class TgtAio(Tgt):
    name = "tgt-aio"
    store = "aio"

    def note(self):
        return "bstype aio, which opens with O_DIRECT"


class TgtRdwr(Tgt):
    name = "tgt-rdwr"
    store = "rdwr"
    is_direct = True

    def note(self):
        return "bstype rdwr, 16 threads per LUN, " + ("direct" if self.direct else "page cache (the backing refuses O_DIRECT)")


class Istgt(IscsiServer):
    name = "istgt"

    def note(self):
        return "page cache, a thread per connection and per LUN"

    def command(self, transport):
        config = os.path.join(self.folder, "config")
        with open(os.path.join(self.folder, "auth"), "w", encoding="utf-8"):
            pass
        units = "".join(
            f"[LogicalUnit{lun + 1}]\n  TargetName bench{lun}\n  Mapping PortalGroup1 InitiatorGroup1\n  AuthMethod None\n  AuthGroup None\n"
            f"  UseDigest Auto\n  UnitType Disk\n  BlockLength 512\n  QueueDepth 64\n  LUN0 Storage {path} Auto\n"
            for lun, path in enumerate(self.files()))
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f"[Global]\n  NodeBase iqn.2007-09.jp.ne.peach.istgt\n  PidFile {self.folder}/pid\n  AuthFile {self.folder}/auth\n"
                f"  MediaDirectory {self.folder}\n  LogFacility local7\n  Timeout 30\n  NopInInterval 20\n  DiscoveryAuthMethod None\n"
                "  MaxSessions 32\n  MaxConnections 8\n  MaxR2T 32\n  MaxOutstandingR2T 16\n  FirstBurstLength 262144\n  MaxBurstLength 1048576\n"
                "  MaxRecvDataSegmentLength 262144\n  InitialR2T Yes\n  ImmediateData Yes\n  DataPDUInOrder Yes\n  DataSequenceInOrder Yes\n"
                "  ErrorRecoveryLevel 0\n"
                f"[UnitControl]\n  AuthMethod None\n  AuthGroup None\n  Portal UC1 127.0.0.1:{free_port()}\n  Netmask 127.0.0.1\n"
                f"[PortalGroup1]\n  Portal DA1 127.0.0.1:{self.port}\n[InitiatorGroup1]\n  InitiatorName ALL\n  Netmask 127.0.0.1\n{units}")
        return ["istgt", "-D", "-c", config]

    def target(self, lun):
        return f"iqn.2007-09.jp.ne.peach.istgt:bench{lun}", 0


class Raw(IscsiServer):
    """No server: the file of the first disk, by qemu-img bench on the file itself. The ceiling of the backing."""

    name = "raw"

    def note(self):
        return "qemu-img bench on the file, io_uring" + (", direct" if self.direct else ", page cache")

    def start(self, transport):
        pass

    def url(self, lun):
        return self.files()[lun]


PEERS = {peer.name: peer for peer in (TgtAio, TgtRdwr, Istgt, Raw)}

"""blockd alone, as the benches without a peer run it."""

import json
import os
import shutil
import sys
import tempfile
import time

import machine
from machine import BenchError
from servers import Blockd, free_port


def verdict(is_met):
    return "met" if is_met else "MISSED"


def run_bench(name, bench, options, parent, more=None):
    """Runs a bench in a folder of its own below `parent`, prints what it says and writes its figures where --json wants them;
    the exit code. `more` is what the file says besides machine and figures."""
    about = machine.describe(options.blockd)
    folder = tempfile.mkdtemp(prefix=f"blockd-{name}-", dir=parent)
    try:
        figures, text = bench(options, folder)
    except BenchError as e:
        print(f"bench/load/{name}.sh: {e}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(text)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "bench": name, **(more or {}), **figures}, file, indent=1)
            file.write("\n")
    return 0


class Daemon(Blockd):
    """blockd with store and volumes of the bench's choice, and the admin API on demand."""

    def __init__(self, folder, volume, store, program, options, with_api=False):
        super().__init__(folder, volume, machine.takes_direct(folder), program, options)
        self.store = store
        self.api = free_port() if with_api else None
        self.relayout = "on"

    def command(self, transport):
        api = f"127.0.0.1:{self.api}" if self.api else "none"
        return [self.program, "--data-dir", self.data, "--nbd", f"unix:{self.socket}", "--api", api,
                "--store-size", str(self.store), "--provisioning", "thin", *(["--create-volume", f"bench:{self.size}"] if self.size else []), *self.layout(), *self.options]

    def start_ready(self, limit=600):
        """Starts it; seconds until it said `ready`."""
        log = os.path.join(self.folder, "log")
        offset = os.path.getsize(log) if os.path.exists(log) else 0
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        began = time.monotonic()
        self.process = self.launch("unix")
        while time.monotonic() - began < limit:
            with open(log, encoding="utf-8", errors="replace") as file:
                file.seek(offset)
                if "ready" in file.read().splitlines():
                    return time.monotonic() - began
            if self.process.poll() is not None:
                raise BenchError(f"blockd ended with {self.process.returncode}:\n{self.said()}")
            time.sleep(0.005)
        raise BenchError(f"blockd is not ready after {limit} s:\n{self.said()}")

    def start_whole(self):
        """Starts it with a store whose file is written in full."""
        self.start_ready()
        self.stop()
        self.make_whole()
        self.start_ready()

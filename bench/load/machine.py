"""What a result must carry to be read later: machine, kernel, versions, commit, date; and the backing's nature."""

import datetime
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

DIRECT_BLOCK = 4096
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


def stop_cleanly():
    """A SIGTERM unwinds like Ctrl-C, so that servers are ended and files removed."""
    def stop(*_):
        raise SystemExit(143)
    signal.signal(signal.SIGTERM, stop)


def output(*command):
    """First line that a program prints, or a dash."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "-"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "-"


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def describe(blockd, versions=None):
    """Machine, kernel, versions, commit and date as a dictionary for JSON."""
    model = re.search(r"model name\s*:\s*(.*)", read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "HEAD") + ("+changes" if dirty.strip() else ""),
        "machine": {
            "cpu": model.group(1) if model else platform.machine(),
            "cores": os.cpu_count(),
            "ram_bytes": int(memory.group(1)) * 1024 if memory else None,
        },
        "kernel": platform.release(),
        "load_average_at_start": list(os.getloadavg()),
        "versions": {
            "blockd": output(blockd, "--version"),
            "dotnet": output("dotnet", "--version"),
            **{name: output(*command) for name, command in (versions or {"fio": ["fio", "--version"]}).items()},
        },
        "command": " ".join(sys.argv),
    }


def filesystem(path):
    """Type of the filesystem that holds a path."""
    return output("stat", "-f", "-c", "%T", path)


def takes_direct(folder):
    """True when files in the folder open with O_DIRECT."""
    path = os.path.join(folder, "direct.probe")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
        return True
    except OSError:
        return False
    finally:
        if os.path.exists(path):
            os.unlink(path)


def need_space(folder, size):
    """Refuses to begin what the backing has no room for."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise BenchError(f"{folder} has {free >> 20} MiB free, {size >> 20} MiB are needed; take a smaller --size")


def cpu_seconds(pid):
    """User and system time of a process, its living children, and those that it has already waited for."""
    total = 0
    try:
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        total = sum(int(ticks) for ticks in fields[11:15])
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in read(f"/proc/{pid}/task/{thread}/children").split():
                total += cpu_seconds(int(child)) * TICKS
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total / TICKS


def busy_seconds():
    """Time that all cores were not idle since boot, and of it what the hypervisor took away."""
    numbers = [int(n) for n in read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / TICKS, numbers[7] / TICKS


def parse_size(text):
    """1g, 512m, 4k or bytes."""
    match = re.fullmatch(r"(\d+)([kmgt]?)", text.lower())
    if not match:
        raise BenchError(f"'{text}' is no size; write for instance 512m or 2g")
    return int(match.group(1)) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match.group(2)]


class Watch:
    """CPU time of a server, of the programs that the bench waits for, and of the rest of the machine while a block runs."""

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        self.busy, self.steal = busy_seconds()
        self.began = time.monotonic()
        self.ours = own_children()
        self.before = cpu_seconds(self.pid) if self.pid else 0
        return self

    def __exit__(self, *_):
        server = cpu_seconds(self.pid) - self.before if self.pid else None
        client = own_children() - self.ours
        busy, steal = busy_seconds()
        wall = time.monotonic() - self.began
        self.server_seconds, self.client_seconds = server, client
        # What neither server nor client used: the noise of the machine, in cores.
        self.other_cores = max(0.0, busy - self.busy - client - (server or 0)) / wall
        self.stolen_cores = (steal - self.steal) / wall


def own_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

"""One fio run, and what it measured."""

import json
import resource
import subprocess
import time

from machine import BenchError, busy_seconds, cpu_seconds


def run(target, arguments, pid=None, limit=120):
    """Runs fio on a target (the fio arguments that name engine and file); its figures as a dictionary.

    `pid` is the server whose CPU time is taken before and after. Any error of fio ends the bench.
    """
    command = ["fio", "--name=bench", "--output-format=json", "--group_reporting=1", "--thread=1",
               "--lat_percentiles=0", "--percentile_list=50:99", "--eta=never", *target, *arguments]
    busy, steal = busy_seconds()
    began = time.monotonic()
    ours = own_children()
    before = cpu_seconds(pid) if pid else 0
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"fio hangs (more than {limit} s): {' '.join(command)}") from None
    server = cpu_seconds(pid) - before if pid else None
    client = own_children() - ours
    busy_after, steal_after = busy_seconds()
    wall = time.monotonic() - began
    start = done.stdout.find("{")
    failure = f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}{done.stdout[:max(start, 0)][-2000:]}"
    if done.returncode != 0 or start < 0:
        raise BenchError(failure)
    job = json.loads(done.stdout[start:])["jobs"][0]
    if job["error"] != 0:
        raise BenchError(failure)
    sides = [job[side] for side in ("read", "write") if job[side]["total_ios"] > 0]
    if len(sides) != 1:
        raise BenchError("fio did no I/O: " + failure)
    side = sides[0]
    percentiles = side["clat_ns"].get("percentile", {})
    return {
        "iops": side["iops"],
        "mb_per_s": side["bw_bytes"] / 1e6,
        "p50_us": percentiles.get("50.000000", 0) / 1000,
        "p99_us": percentiles.get("99.000000", 0) / 1000,
        "ios": side["total_ios"],
        "seconds": side["runtime"] / 1000,
        "cpu_us_per_io": server * 1e6 / side["total_ios"] if pid else None,
        # What neither server nor fio used: the noise of the machine, in cores.
        "other_cores": max(0.0, busy_after - busy - client - (server or 0)) / wall,
        "stolen_cores": (steal_after - steal) / wall,
    }


def own_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

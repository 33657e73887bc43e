"""One fio run, and what it measured."""

import json
import subprocess

from machine import BenchError, Watch


def run(target, arguments, pid=None, limit=120):
    """Runs fio on a target (the fio arguments that name engine and file); its figures as a dictionary.

    `pid` is the server whose CPU time is taken before and after. Any error of fio ends the bench.
    """
    command = ["fio", "--name=bench", "--output-format=json", "--group_reporting=1", "--thread=1",
               "--lat_percentiles=0", "--percentile_list=50:99", "--eta=never", *target, *arguments]
    try:
        with Watch(pid) as watch:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"fio hangs (more than {limit} s): {' '.join(command)}") from None
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
        "cpu_us_per_io": watch.server_seconds * 1e6 / side["total_ios"] if pid else None,
        "other_cores": watch.other_cores,
        "stolen_cores": watch.stolen_cores,
    }


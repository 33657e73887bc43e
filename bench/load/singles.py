"""The benches that look at blockd alone: opening after a kill, a full store, an idle daemon, relayout at work, snapshots.
Run them by open.sh, full.sh, idle.sh, relayout.sh, snapshots.sh.

Each prints one line, and with --json FILE writes it with the machine and every figure.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time

import fio
import machine
import snapshots
from daemon import Daemon, run_bench, verdict
from machine import BenchError


def open_after_kill(options, folder):
    """Fills, kills under random writes, and takes the time from the start of the program to `ready`."""
    size = machine.parse_size(options.size or "30g")
    store = int(size * 1.15) + (1 << 30)
    machine.need_space(folder, store + (256 << 20))
    daemon = Daemon(folder, size, store, options.blockd, options.blockd_options.split())
    times = []
    try:
        daemon.start_ready()
        fio.run(daemon.target("unix"), [f"--size={size}", "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"], limit=7200)
        for number in range(options.rounds or 3):
            load = subprocess.Popen(["fio", "--name=bench", *daemon.target("unix"), "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based=1",
                                     f"--runtime={int(options.seconds or 10) + 30}", "--norandommap=1", f"--randseed={number + 1}"],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(options.seconds or 10)
            if load.poll() is not None:
                raise BenchError(f"the load ended by itself with {load.returncode}:\n{daemon.said()}")
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.process.wait()
            load.wait(120)
            times.append(daemon.start_ready())
        # That it serves what it opened is part of the claim.
        fio.run(daemon.target("unix"), ["--rw=randread", "--bs=4k", "--iodepth=32", "--time_based=1", "--runtime=1", "--norandommap=1"])
        daemon.stop()
        clean = daemon.start_ready()
    finally:
        daemon.stop()
    median = statistics.median(times)
    return {"stored_bytes": size, "ready_s": times, "median_s": median, "clean_ready_s": clean}, (
        f"open: {size / 2**30:g} GiB stored, killed under 4k random writes: ready in {median:.2f} s (median of {len(times)}, "
        f"largest {max(times):.2f}; {clean:.2f} after a clean stop); target < 2 s at 30 GiB: {verdict(median < 2)}")


def full(options, folder):
    """4k random overwrites and reads in a store that is nearly empty, and in one of the same size that is 90 % full."""
    store = machine.parse_size(options.size or "4g")
    machine.need_space(folder, 2 * store + (256 << 20))
    figures = {}
    shares = {"empty": 10.0, "full": options.percent}
    sizes, used, daemons = {}, {}, {}
    try:
        for name, percent in shares.items():
            place = os.path.join(folder, name)
            os.makedirs(place)
            daemons[name] = daemon = Daemon(place, None, store, options.blockd, options.blockd_options.split(), with_api=True)
            daemon.start_ready()
            disk = daemon.call("/v1/disks")["disks"][0]
            sizes[name] = size = int(disk["dataBytes"] * percent / 100) >> 20 << 20
            daemon.call("/v1/volumes", {"name": "bench", "sizeBytes": size})
            fio.run(daemon.target("unix"), [f"--size={size}", "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"], limit=3600)
            disk = daemon.call("/v1/disks")["disks"][0]
            used[name] = 100 * disk["usedBytes"] / disk["dataBytes"]
        # Both overwrite a region of the same size, so that only the filling differs.
        region = sizes["empty"]
        for number in range(1, (options.rounds or 3) + 1):
            for rw in ("randwrite", "randread"):
                for name, daemon in daemons.items():
                    run = fio.run(daemon.target("unix"), [f"--size={region}", f"--rw={rw}", "--bs=4k", "--iodepth=32", "--time_based=1", "--norandommap=1",
                                                          f"--runtime={options.seconds or 5}", f"--randseed={number}"], daemon.pid)
                    figures.setdefault(rw, {}).setdefault(name, []).append(run)
    finally:
        for daemon in daemons.values():
            daemon.stop()
    ratios = {rw: statistics.median(r["iops"] for r in sides["full"]) / statistics.median(r["iops"] for r in sides["empty"])
              for rw, sides in figures.items()}
    return {"store_bytes": store, "volume_bytes": sizes, "used_percent": used, "ratios": ratios, "runs": figures}, (
        f"full: {used['full']:.0f} % full against {used['empty']:.0f} %, 4k QD32: writes {ratios['randwrite']:.2f}x, reads {ratios['randread']:.2f}x "
        f"(medians of {options.rounds or 3} rounds); target >= 0.8x: {verdict(min(ratios.values()) >= 0.8)}")


def idle(options, folder):
    """CPU time of a daemon that has many volumes and nothing to do."""
    machine.need_space(folder, 4 << 30)
    daemon = Daemon(folder, 1 << 20, 3 << 30, options.blockd, options.blockd_options.split(), with_api=True)
    seconds = options.seconds or 30
    try:
        daemon.start_ready()
        for number in range(1, options.volumes):
            daemon.call("/v1/volumes", {"name": f"v{number}", "sizeBytes": 1 << 20})
        # One block in one volume, so that the store was really used; then what that leaves to do may end.
        fio.run(daemon.target("unix"), ["--size=1m", "--rw=write", "--bs=4k", "--iodepth=1"])
        time.sleep(10)
        before = machine.cpu_seconds(daemon.pid)
        time.sleep(seconds)
        used = machine.cpu_seconds(daemon.pid) - before
        status = machine.read(f"/proc/{daemon.pid}/status")
    finally:
        daemon.stop()
    memory = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) << 10
    percent = used / seconds * 100
    return {"volumes": options.volumes, "seconds": seconds, "cpu_seconds": used, "core_percent": percent, "rss_bytes": memory}, (
        f"idle: {options.volumes} volumes, {seconds:g} s: {percent:.2f} % of a core, {memory >> 20} MiB resident; "
        f"target < 0.5 % at 1000 volumes: {verdict(percent < 0.5)}")


def relayout(options, folder):
    """4k random writes to one half of a volume while the other half, overwritten at random, is laid out anew, and without that."""
    size = machine.parse_size(options.size or "1g")
    machine.need_space(folder, 3 * size)
    seconds = options.seconds or 8
    daemon = Daemon(folder, size, int(size * 2.4) + (256 << 20), options.blockd, options.blockd_options.split(), with_api=True)
    figures, relaid = {"off": [], "on": []}, []
    write = [f"--size={size // 2}", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based=1", "--norandommap=1"]
    try:
        daemon.start_ready()
        fio.run(daemon.target("unix"), [f"--size={size}", "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"], limit=3600)
        for number in range(1, (options.rounds or 3) + 1):
            for mode in ("off", "on") if number % 2 else ("on", "off"):
                daemon.stop()
                daemon.relayout = "off"
                daemon.start_ready()
                fio.run(daemon.target("unix"), [f"--offset={size // 2}", f"--size={size // 2}", "--rw=randwrite", "--bs=4k", "--iodepth=32"], limit=600)
                daemon.stop()
                daemon.relayout = mode
                daemon.start_ready()
                # Until what was written before the start is old enough to be laid out anew clients are at work too.
                fio.run(daemon.target("unix"), [*write, "--runtime=12", f"--randseed={number}"], daemon.pid)
                before = daemon.disk()["relaidBytes"]
                figures[mode].append(fio.run(daemon.target("unix"), [*write, f"--runtime={seconds}", f"--randseed={number + 99}"], daemon.pid))
                if mode == "on":
                    relaid.append((daemon.disk()["relaidBytes"] - before) / seconds)
    finally:
        daemon.stop()
    ratio = statistics.median(r["iops"] for r in figures["on"]) / statistics.median(r["iops"] for r in figures["off"])
    tails = {mode: statistics.median(r["p99_us"] for r in runs) for mode, runs in figures.items()}
    return {"size": size, "seconds": seconds, "runs": figures, "ratio": ratio, "relaid_bytes_per_s": relaid}, (
        f"relayout: 4k random writes QD32 at {ratio:.2f}x of those without it, p99 {tails['on']:.0f} against {tails['off']:.0f} us, while "
        f"{statistics.median(relaid) / 2**20:.1f} MiB/s were laid out anew (medians of {options.rounds or 3} rounds); "
        f"target >= 0.95x: {verdict(ratio >= 0.95)}")


BENCHES = {"open": open_after_kill, "full": full, "idle": idle, "relayout": relayout, "snapshots": snapshots.run}


def main():
    machine.stop_cleanly()
    name = sys.argv[1]
    bench = BENCHES[name]
    parser = argparse.ArgumentParser(prog=f"bench/load/{name}.sh", description=bench.__doc__)
    parser.add_argument("--backing", choices=["shm", "disk"], default="disk")
    parser.add_argument("--scratch", help="folder on the disk (default: the temporary folder)")
    parser.add_argument("--seconds", type=float, help="open: of load before each kill (10); full: of each run (5); idle: watched (30); relayout: of each run (8); snapshots: of each run (2)")
    parser.add_argument("--blockd", default=os.environ.get("BLOCKD", "out/blockd"))
    parser.add_argument("--blockd-options", default="", help="further options of the daemon, for instance '--engine aio'")
    parser.add_argument("--json", metavar="FILE")
    if name != "idle":
        parser.add_argument("--size", help="open: data in the store (30g); full: of each of the two stores (4g); relayout, snapshots: of the volume (1g)")
        parser.add_argument("--rounds", type=int, help="of which the median is taken (3)")
    if name == "full":
        parser.add_argument("--percent", type=float, default=90)
    if name == "idle":
        parser.add_argument("--volumes", type=int, default=1000)
    if name == "snapshots":
        parser.add_argument("--snapshots", type=int, default=1000, help="of the volume that has many (1000)")
        parser.add_argument("--cuts", type=int, default=120, help="around which the longest writes are looked for (120)")
        parser.add_argument("--only", nargs="+", choices=snapshots.PARTS, help="parts, not all")
    options = parser.parse_args(sys.argv[2:])
    return run_bench(name, bench, options, "/dev/shm" if options.backing == "shm" else options.scratch, {"backing": options.backing})


if __name__ == "__main__":
    sys.exit(main())

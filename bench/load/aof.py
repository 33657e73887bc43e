"""Durable appends: an append-only volume of blockd beside a file with O_APPEND + fdatasync on the same disk. Run it by aof.sh.

Rounds are interleaved: file, volume, file, volume. Writers of the file are processes; those of the volume are tasks of one
program, through one connection ("shared") and with a connection each ("own"); the number behind is how many appends each of
them has on its way at a time.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

import machine
from daemon import Daemon, run_bench, verdict
from machine import BenchError

CASES = [("4k by 16 writers", 16, 4096, 3.0), ("128k by one writer", 1, 128 << 10, 1.0)]


def append_to_file(path, size, seconds, results):
    data = os.urandom(size)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    took = []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        start = time.monotonic()
        if os.write(fd, data) != size:
            raise BenchError("a short write")
        os.fdatasync(fd)
        took.append(time.monotonic() - start)
    os.close(fd)
    results.put(took)


def run_file(path, writers, size, seconds):
    if os.path.exists(path):
        os.unlink(path)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    results = multiprocessing.SimpleQueue()
    began = time.monotonic()
    running = [multiprocessing.Process(target=append_to_file, args=(path, size, seconds, results)) for _ in range(writers)]
    for one in running:
        one.start()
    took = sorted(second for _ in running for second in results.get())
    for one in running:
        one.join()
    ran = max(seconds, time.monotonic() - began - 0.05)
    os.unlink(path)
    return {"appends_per_s": len(took) / ran, "p50_us": took[len(took) // 2] * 1e6, "p99_us": took[len(took) * 99 // 100] * 1e6}


def run_volume(options, daemon, writers, size, seconds, mode, number):
    command = [options.client, f"http://127.0.0.1:{daemon.api}", os.path.join(daemon.data, "admin.token"), f"aof-{number}", str(writers), str(size), str(seconds), mode.split("-")[0], mode.split("-")[1], str(options.warm_up)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + options.warm_up + 60, check=False)
    if done.returncode:
        raise BenchError(f"the client ended with {done.returncode}: {done.stderr}\n{daemon.said()}")
    return json.loads(done.stdout)


def use_store(options, daemon, store):
    """Writes most of the store once and gives it back: what a filesystem holds of it then needs no allocation, as on a disk of its own."""
    lengths = 0
    for _ in range(60):
        run_volume(options, daemon, 1, 1 << 20, 1.0, "own-4", 0)
        now = daemon.call("/v1/volumes/aof-0/aof")["lengthBytes"]
        if now > 0.75 * store or now == lengths:
            break
        lengths = now
    daemon.call(f"/v1/volumes/aof-0?id={daemon.call('/v1/volumes/aof-0')['id']}", method="DELETE")
    time.sleep(3)


def append(options, folder):
    store = machine.parse_size(options.size)
    machine.need_space(folder, store + (1 << 30))
    daemon = Daemon(folder, None, store, options.blockd, options.blockd_options.split(), with_api=True)
    figures, lines = {}, []
    try:
        daemon.start_ready()
        number = 0
        if options.used:
            use_store(options, daemon, store)
        for name, writers, size, target in CASES:
            kinds = ["file", "shared-1", "shared-8", "own-1"] if writers > 1 else ["file", "own-1", "own-2"]
            runs = {kind: [] for kind in kinds}
            for _ in range(options.rounds):
                for kind in kinds:
                    number += 1
                    if kind == "file":
                        runs[kind].append(run_file(os.path.join(folder, "appended"), writers, size, options.seconds))
                    else:
                        runs[kind].append(run_volume(options, daemon, writers, size, options.seconds, kind, number))
                        volume = daemon.call(f"/v1/volumes/aof-{number}")
                        daemon.call(f"/v1/volumes/aof-{number}?id={volume['id']}", method="DELETE")
            median = {kind: {key: statistics.median(run[key] for run in of) for key in of[0]} for kind, of in runs.items()}
            figures[name] = {"runs": runs, "median": median}
            base = median["file"]["appends_per_s"]
            best = max(median[kind]["appends_per_s"] for kind in kinds[1:]) / base
            said = "; ".join(f"{kind} {m['appends_per_s']:,.0f}/s, p50 {m['p50_us']:,.0f} us, p99 {m['p99_us']:,.0f} us ({m['appends_per_s'] / base:.2f}x)" for kind, m in median.items())
            lines.append(f"aof: {name}: {said}; target {target:g}x: {verdict(best >= target)}")
    finally:
        daemon.stop()
    return figures, "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blockd", default="out/blockd", help="the daemon")
    parser.add_argument("--blockd-options", default="", help="more of its options")
    parser.add_argument("--client", default="bench/append/bin/Release/net10.0/BlockServer.Bench.Append", help="the program that appends")
    parser.add_argument("--size", default="8g", help="size of the store")
    parser.add_argument("--used", action="store_true", help="the store was written before, as it is after a while; default: a new file, whose filesystem allocates with each append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds in front of each run of the volume that are not counted: client and daemon compile their code then (default: 1)")
    parser.add_argument("--dir", default=None, help="a folder on the disk that is measured (default: the temporary one)")
    parser.add_argument("--json", help="write every figure there")
    options = parser.parse_args()
    sys.exit(run_bench("aof", append, options, options.dir))


if __name__ == "__main__":
    main()

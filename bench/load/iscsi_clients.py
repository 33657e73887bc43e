"""Initiators: one run of iscsi-perf, of qemu-img bench or of the project's own, and what it measured."""

import json
import re
import subprocess
import threading

from machine import BenchError, Watch

# Requests of qemu-img bench go this many blocks apart, a prime: every block is met once before one is met again.
STRIDE_BLOCKS = 5077

INITIATOR = "bench/initiator/bin/Release/net10.0/BlockServer.Bench.Initiator"


def perf(server, luns, block, depth, seconds):
    """Reads in order by iscsi-perf, a session for each LUN. `seconds` are rounded: it knows whole ones only."""
    seconds = max(1, round(seconds))
    commands = [["iscsi-perf", "-m", str(depth), "-b", str(block // 512), "-t", str(seconds), server.url(lun)] for lun in range(luns)]
    outputs, watch = together(commands, server.pid, seconds + 60)
    rate = 0
    for command, text in zip(commands, outputs):
        found = re.findall(r"iops average (\d+)", text)
        if "finished" not in text or not found or "failed" in text:
            raise BenchError(f"{' '.join(command)} said:\n{text[-2000:]}")
        rate += int(found[-1])
    return figures(rate * seconds, seconds, block, watch)


def qemu(server, luns, rw, block, depth, count, header_digest=False):
    """qemu-img bench, a session for each LUN, `count` requests each: in order when they are large, else far apart."""
    commands = []
    for lun in range(luns):
        step = block if block > 4096 else block * STRIDE_BLOCKS
        command = ["qemu-img", "bench", "-c", str(count), "-d", str(depth), "-s", str(block), "-S", str(step), "-t", "none"]
        command += ["-w", "--pattern=165"] if rw == "write" else []
        commands.append([*command, *image(server, lun, header_digest)])
    outputs, watch = together(commands, server.pid, 300)
    times = []
    for command, text in zip(commands, outputs):
        found = re.search(r"Run completed in ([\d.]+) seconds", text)
        if not found:
            raise BenchError(f"{' '.join(command)} said:\n{text[-2000:]}")
        times.append(float(found.group(1)))
    return figures(count * luns, max(times), block, watch)


def own(server, rw, block, depth, seconds, digests, seed):
    """The project's own initiator: random places when requests are small. It tells latencies and knows data digests."""
    name, lun = server.target(0)
    command = [INITIATOR, "127.0.0.1", str(server.port), name, str(lun), rw, str(block), str(depth), f"{seconds:g}", str(seed),
               "crc32c" if digests else "none"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        timer = threading.Timer(seconds + 60, process.kill)
        timer.start()
        try:
            first = process.stdout.readline()
            with Watch(server.pid) as watch:
                text = process.stdout.readline()
            rest = process.stdout.read()
        finally:
            timer.cancel()
    if process.returncode != 0 or not text.startswith("{"):
        raise BenchError(f"{' '.join(command)} ended with {process.returncode}:\n{first}{text}{rest}")
    told = json.loads(text)
    watch.other_cores -= told["client_cpu_s"] / told["seconds"]
    watch.client_seconds = told["client_cpu_s"]
    return {**figures(told["ios"], told["seconds"], block, watch), "p50_us": told["p50_us"], "p99_us": told["p99_us"]}


def image(server, lun, header_digest):
    if server.name == "raw":
        return ["-f", "raw", "-i", "io_uring", server.url(lun)]
    if not header_digest:
        return ["-f", "raw", server.url(lun)]
    # In an address it makes qemu 7.2 die.
    name, number = server.target(lun)
    return ["--image-opts", f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:{server.port},"
            f"file.target={name},file.lun={number},file.header-digest=crc32c"]


def together(commands, pid, limit):
    """Runs programs at the same time; what they said, and the watch."""
    with Watch(pid) as watch:
        running = [subprocess.Popen(c, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
        try:
            outputs = [p.communicate(timeout=limit)[0] for p in running]
        except subprocess.TimeoutExpired:
            raise BenchError(f"hangs (more than {limit} s): {' '.join(commands[0])}") from None
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    for process, command, text in zip(running, commands, outputs):
        if process.returncode != 0:
            raise BenchError(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    return outputs, watch


def figures(ios, seconds, block, watch):
    return {
        "iops": ios / seconds,
        "mb_per_s": ios / seconds * block / 1e6,
        # Debian's clients tell no latency.
        "p50_us": None,
        "p99_us": None,
        "ios": ios,
        "seconds": seconds,
        "cpu_us_per_io": watch.server_seconds * 1e6 / ios if watch.pid else None,
        "client_cpu_us_per_io": watch.client_seconds * 1e6 / ios,
        "other_cores": watch.other_cores,
        "stolen_cores": watch.stolen_cores,
    }

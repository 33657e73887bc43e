"""blockd under one workload with perf, then once more with the runtime's allocation events. Run it by profile.sh."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import fio
import iscsi_servers
import machine
from iscsi import FIRST_COUNT, LINES, bench
from machine import BenchError
from servers import Blockd
from workloads import WORKLOADS


def arguments():
    parser = argparse.ArgumentParser(prog="bench/load/profile.sh", description=__doc__)
    parser.add_argument("--workload", default=WORKLOADS[0].name, choices=[w.name for w in WORKLOADS] + ["iscsi/" + line.name for line in LINES],
                        help="of nbd.sh, or of iscsi.sh with iscsi/ in front (over TCP always)")
    parser.add_argument("--backing", choices=["shm", "disk"], default="shm")
    parser.add_argument("--transport", choices=["unix", "tcp"], default="unix")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--size", default="512m")
    parser.add_argument("--top", type=int, default=40, help="symbols to print")
    parser.add_argument("--graph", action="store_true", help="also print the callers of the hottest symbols")
    parser.add_argument("--blockd", default=os.environ.get("BLOCKD", "out/blockd"))
    parser.add_argument("--blockd-options", default="")
    parser.add_argument("--scratch", help="folder on the disk for --backing disk")
    return parser.parse_args()


def times(pid):
    """User and system seconds of a process."""
    fields = machine.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[11]) / machine.TICKS, int(fields[12]) / machine.TICKS


def run(server, transport, workload, seconds, seed):
    """The workload by its client; its figures."""
    if workload in LINES:
        rate = bench(server, workload, seconds, FIRST_COUNT[workload.block])["iops"]
        return bench(server, workload, seconds, int(rate * seconds))
    return fio.run(server.target(transport), workload.fio(server.size, seconds, seed), server.pid)


def load(server, transport, workload, seconds, during):
    """Runs the client; in its middle calls `during`, whose failure is raised here."""
    failed = []

    def middle():
        time.sleep(0.5)
        try:
            during()
        except (BenchError, OSError, subprocess.SubprocessError) as e:
            failed.append(e)

    thread = threading.Thread(target=middle)
    thread.start()
    user, system = times(server.pid)
    figures = run(server, transport, workload, seconds, 1)
    after = times(server.pid)
    thread.join()
    if failed:
        raise BenchError(str(failed[0]))
    return figures, after[0] - user, after[1] - system


def main():
    machine.stop_cleanly()
    options = arguments()
    is_iscsi = options.workload.startswith("iscsi/")
    workload = next(w for w in (LINES if is_iscsi else WORKLOADS) if w.name == options.workload.removeprefix("iscsi/"))
    options.transport = "tcp" if is_iscsi else options.transport
    parent = "/dev/shm" if options.backing == "shm" else options.scratch or tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="blockd-profile-", dir=parent)
    size = machine.parse_size(options.size)
    server = (iscsi_servers.Blockd if is_iscsi else Blockd)(folder, size, machine.takes_direct(folder), options.blockd, options.blockd_options.split())
    perf_map = None
    try:
        machine.need_space(folder, int(size * server.needs_factor) + (512 << 20))
        server.prepare()

        # Everything is compiled in the process, so that the map names the framework's methods too; and
        # where it is compiled to, not in a mapping that perf takes for a file.
        server.environment = {"DOTNET_PerfMapEnabled": "3", "DOTNET_ReadyToRun": "0", "DOTNET_EnableWriteXorExecute": "0"}
        server.start(options.transport)
        perf_map = f"/tmp/perf-{server.pid}.map"
        warm(server, options.transport, workload)
        data = os.path.join(folder, "perf.data")
        record = ["perf", "record", "-q", "-F", "1999", "-e", "cpu-clock", "-o", data, "-p", str(server.pid)]
        if options.graph:
            record.append("-g")
        recorded = max(1.0, options.seconds - 1)
        figures, user, system = load(server, options.transport, workload, options.seconds, lambda: checked([*record, "--", "sleep", str(recorded)]))
        server_user, server_kernel = user / figures["ios"] * 1e6, system / figures["ios"] * 1e6
        print(f"{workload.what}, {options.backing}, {options.transport}: {figures['iops']:.0f} IOPS, {figures['mb_per_s']:.0f} MB/s, "
              f"p50 {figures['p50_us'] or 0:.0f} us, p99 {figures['p99_us'] or 0:.0f} us; other programs used {figures['other_cores']:.2f} cores")
        print(f"server CPU per I/O: {server_user + server_kernel:.2f} us = user {server_user:.2f} + kernel {server_kernel:.2f} "
              "(perf's own cost included)")
        print(f"\nhottest {options.top} symbols, percent of the server's samples ([.] user, [k] kernel):")
        report(data, options.top, ["--sort", "sym,dso", "-g", "none"])
        print("\nby object:")
        report(data, 10, ["--sort", "dso", "-g", "none"])
        if options.graph:
            print("\ncallers:")
            report(data, 200, ["--sort", "sym", "-g", "caller,0.5,callee", "--percent-limit", "2"])
        server.stop()

        trace = os.path.join(folder, "events.nettrace")
        server.environment = {
            "DOTNET_EnableEventPipe": "1", "DOTNET_EventPipeOutputPath": trace, "DOTNET_EventPipeOutputStreaming": "1",
            # The GC keyword at verbose: an event per 100 KiB allocated.
            "DOTNET_EventPipeConfig": "Microsoft-Windows-DotNETRuntime:0x1:5",
        }
        server.start(options.transport)
        warm(server, options.transport, workload)
        began = time.time()
        figures = run(server, options.transport, workload, options.seconds, 2)
        ended = time.time()
        server.stop()
        print(f"\nmanaged allocation over {figures['ios']} I/Os (the runtime reports each 100 KiB, so less than that shows as 0):", flush=True)
        checked(["dotnet", "run", "--no-build", "-c", "Release", "--project", "bench/micro", "--",
                 "allocations", trace, str(int(began * 1000)), str(int(ended * 1000)), str(figures["ios"])], show=True)
        return 0
    except BenchError as e:
        print(f"bench/load/profile.sh: {e}", file=sys.stderr)
        return 1
    finally:
        server.stop()
        if perf_map and os.path.exists(perf_map):
            os.unlink(perf_map)
        shutil.rmtree(folder, ignore_errors=True)


def warm(server, transport, workload):
    """Until the compiler has nothing left to do."""
    run(server, transport, workload, 4, 3)


def checked(command, show=False):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    if show:
        print(done.stdout, end="")
    return done.stdout


def report(data, top, options):
    text = checked(["perf", "report", "-i", data, "--stdio", "--no-children", "--force", *options])
    # The runtime's map names the assembly in front of everything and the return type; perf pads to the longest name.
    text = re.sub(r"(instance )?[\w!\[\]`<>,.]+ \[(BlockServer|System|Microsoft)[\w.]*\] (?=\S+::)", "", text)
    text = re.sub(r"(?<=\S) {3,}(?=\S)", "   ", re.sub(r"(class |valuetype )?\[[A-Z][\w.]*\](?=\w)|BlockServer\.|System\.Runtime\.", "", text))
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    print("\n".join(lines[:top]))


if __name__ == "__main__":
    sys.exit(main())

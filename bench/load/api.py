"""The admin API under load: what 1,000 requests a second leave to fio, and what a daemon with 10,000 volumes takes. Run it by api.sh."""

import argparse
import collections
import concurrent.futures
import http.client
import itertools
import json
import multiprocessing
import os
import random
import select
import socket
import statistics
import sys
import threading
import time

import fio
import machine
from daemon import Daemon, run_bench, verdict
from machine import BenchError, read

CONNECTIONS = 8  # of one address 16 may be open
CONTROL_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n" + b"x" * 512 + b"\r\n0\r\n\r\n"
END_OF_CHUNKS = b"\r\n0\r\n\r\n"


class Connection:
    """One connection of the load: a request at a time."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.began = None

    def ask(self, request):
        self.began = time.monotonic()
        self.socket.sendall(request)

    def hear(self):
        """Takes what has come; seconds since the request once the answer is whole, else None."""
        got = self.socket.recv(65536)
        if not got:
            raise BenchError("the API closed a connection of the load")
        self.answer += got
        if not self.answer.startswith(b"HTTP/1.1 200 ") and len(self.answer) > 12:
            raise BenchError(self.answer.decode(errors="replace"))
        if not self.answer.endswith(END_OF_CHUNKS):
            head, gap, body = self.answer.partition(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
            if not gap or length is None or len(body) < length:
                return None
        took, self.answer, self.began = time.monotonic() - self.began, b"", None
        return took


def answer(listener):
    """The control: answers each request with the same bytes, and does nothing else. A process of its own; ends with its parent."""
    clients = {}
    with select.epoll() as waiting:
        waiting.register(listener.fileno(), select.EPOLLIN)
        while True:
            for number, _ in waiting.poll():
                if number == listener.fileno():
                    client, _ = listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = client
                    waiting.register(client.fileno(), select.EPOLLIN)
                    continue
                try:
                    if clients[number].recv(65536):
                        clients[number].sendall(CONTROL_ANSWER)
                        continue
                except OSError:
                    pass  # it left with an answer on its way
                clients.pop(number).close()


class Callers(threading.Thread):
    """Sends requests at a steady rate over several connections until it is told to stop. A late one is sent at once: the rate is kept.
    One thread, since what it uses itself is missing to fio and daemon; how much that is, it says."""

    def __init__(self, daemon, port, per_second, paths):
        super().__init__(daemon=True)
        token = read(os.path.join(daemon.data, "admin.token")).strip()
        self.requests = itertools.cycle(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n".encode() for path in paths)
        self.connections = {c.socket.fileno(): c for c in (Connection(port) for _ in range(CONNECTIONS))}
        self.step = 1 / per_second
        self.done = threading.Event()
        self.failure = None
        self.times = []
        self.cpu_seconds = 0

    def run(self):
        try:
            with select.epoll() as waiting:
                for number in self.connections:
                    waiting.register(number, select.EPOLLIN)
                self.ask_on(waiting)
        except (OSError, BenchError) as e:
            self.failure = e
        finally:
            self.cpu_seconds = time.thread_time()
            for connection in self.connections.values():
                connection.socket.close()

    def ask_on(self, waiting):
        due, idle = time.monotonic(), collections.deque(self.connections.values())
        while not self.done.is_set():
            now = time.monotonic()
            while due <= now and idle:
                idle.popleft().ask(next(self.requests))
                due += self.step
            # With all connections at work the next answer is waited for, and what is due goes behind it.
            for number, _ in waiting.poll(due - now if idle else 1):
                took = self.connections[number].hear()
                if took is not None:
                    self.times.append(took)
                    idle.append(self.connections[number])


def under_load(options, folder):
    """4k random reads and writes over NBD alone, with requests to the API, and with as many to a control that only answers, in turn."""
    size = machine.parse_size(options.size)
    machine.need_space(folder, 3 * size)
    daemon = Daemon(folder, size, int(size * 2.4) + (256 << 20), options.blockd, options.blockd_options.split(), with_api=True)
    runs = {rw: {"quiet": [], "api": [], "control": []} for rw in ("randread", "randwrite")}
    loads = {"api": {"rates": [], "times": [], "own": 0}, "control": {"rates": [], "times": [], "own": 0}}
    listener = socket.create_server(("127.0.0.1", 0))
    control = multiprocessing.Process(target=answer, args=(listener,), daemon=True)
    try:
        control.start()
        daemon.start_ready()
        ports = {"api": daemon.api, "control": listener.getsockname()[1]}
        fio.run(daemon.target("unix"), [f"--size={size}", "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"], limit=3600)
        for number in range(options.rounds + 1):  # what happens in the first is not counted: the daemon compiles its code
            for rw, sides in runs.items():
                for side in random.sample(list(sides), len(sides)):
                    figures, callers, took = one_run(options, daemon, ports.get(side), rw, number)
                    if number == 0:
                        continue
                    sides[side].append(figures)
                    if callers:
                        loads[side]["rates"].append(len(callers.times) / took)
                        loads[side]["times"] += callers.times
                        loads[side]["own"] += callers.cpu_seconds
    finally:
        daemon.stop()
        control.kill()
        listener.close()
    kept = {side: {rw: share(sides["quiet"], sides[side]) for rw, sides in runs.items()} for side in loads}
    said = []
    for side, load in loads.items():
        p99 = statistics.quantiles(load["times"], n=100)[98] * 1000
        load["caller_us_per_request"] = load["own"] / len(load["times"]) * 1e6
        load["p99_ms"] = p99
        del load["times"]
        said.append(f"{statistics.median(load['rates']):.0f} requests/s to {'the API' if side == 'api' else 'a server that only answers'} (p99 {p99:.1f} ms): "
                    + ", ".join(f"{rw[4:]}s {mean:.2f}x ± {error:.2f}" for rw, (mean, error) in kept[side].items()))
    isMet = min(mean for mean, _ in kept["api"].values()) >= 0.9 and statistics.median(loads["api"]["rates"]) >= 950
    return {"runs": runs, "kept": kept, "loads": loads}, (
        f"api: fio 4k QD32 beside {'; beside '.join(said)} (means of {options.rounds} rounds, standard error; the caller itself takes "
        f"{loads['api']['caller_us_per_request']:.0f} us of a core for each request); target >= 0.9x at 1000/s: {verdict(isMet)}")


def one_run(options, daemon, port, rw, number):
    callers = None
    if port:
        callers = Callers(daemon, port, options.rate, ["/v1/volumes/bench", "/v1/version", "/v1/sessions", "/v1/stats"])
        callers.start()
    began = time.monotonic()
    figures = fio.run(daemon.target("unix"), [
        f"--size={machine.parse_size(options.size)}", f"--rw={rw}", "--bs=4k", "--iodepth=32", "--time_based=1", "--norandommap=1",
        f"--runtime={options.seconds}", f"--randseed={number}"], daemon.pid)
    took = time.monotonic() - began
    if callers:
        callers.done.set()
        callers.join()
        if callers.failure:
            raise BenchError(f"the load failed: {callers.failure}")
    return figures, callers, took


def share(alone, beside):
    """What is kept of IOPS beside a load, by the means, and the standard error by the rounds."""
    ratios = [b["iops"] / a["iops"] for a, b in zip(alone, beside)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    return statistics.mean(b["iops"] for b in beside) / statistics.mean(a["iops"] for a in alone), error


def many(options, folder):
    """Makes many volumes, lists them, starts with them, and watches the daemon rest."""
    machine.need_space(folder, 6 << 30)
    daemon = Daemon(folder, 1 << 20, 5 << 30, options.blockd, options.blockd_options.split(), with_api=True)
    try:
        daemon.start_ready()
        began = time.monotonic()
        token = read(os.path.join(daemon.data, "admin.token")).strip()

        def make(part):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.api, timeout=60)
            for number in range(1 + part, options.volumes, CONNECTIONS):
                body = json.dumps({"name": f"v{number}", "sizeBytes": 1 << 20})
                connection.request("POST", "/v1/volumes", body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 201:
                    raise BenchError(said.decode(errors="replace"))
            connection.close()

        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(make, range(CONNECTIONS)))
        made = time.monotonic() - began
        daemon.stop()
        start = daemon.start_ready()
        rss = resident(daemon)
        lists = []
        for _ in range(options.rounds + 1):  # the first compiles what it needs, and counts as well
            began = time.monotonic()
            count = len(daemon.call("/v1/volumes")["volumes"])
            lists.append(time.monotonic() - began)
            if count != options.volumes:
                raise BenchError(f"{count} volumes are listed, not {options.volumes}")
        time.sleep(10)
        before = machine.cpu_seconds(daemon.pid)
        time.sleep(options.idle)
        percent = (machine.cpu_seconds(daemon.pid) - before) / options.idle * 100
    finally:
        daemon.stop()
    isMet = max(lists) < 1 and start < 5 and rss < 300 << 20 and percent < 0.5
    return {"volumes": options.volumes, "made_s": made, "start_s": start, "rss_bytes": rss, "list_s": lists, "idle_core_percent": percent}, (
        f"api: {options.volumes} volumes: listed in {max(lists):.2f} s (largest of {len(lists)}, the first after the start included; target < 1), "
        f"start {start:.2f} s (< 5), {rss >> 20} MiB resident (< 300), idle {percent:.2f} % of a core (< 0.5), made in {made:.0f} s: {verdict(isMet)}")


def resident(daemon):
    status = read(f"/proc/{daemon.pid}/status")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) << 10


def bench(options, folder):
    figures, texts = {}, []
    for name, part in (("load", under_load), ("many", many)):
        if options.part in (name, "all"):
            place = os.path.join(folder, name)
            os.makedirs(place)
            figures[name], text = part(options, place)
            texts.append(text)
    return figures, "\n".join(texts)


def main():
    machine.stop_cleanly()
    parser = argparse.ArgumentParser(prog="bench/load/api.sh", description=__doc__)
    parser.add_argument("--part", choices=["load", "many", "all"], default="all")
    parser.add_argument("--backing", choices=["shm", "disk"], default="disk")
    parser.add_argument("--scratch", help="folder on the disk (default: the temporary folder)")
    parser.add_argument("--seconds", type=float, default=2, help="of each run of fio (2)")
    parser.add_argument("--rounds", type=int, default=10, help="of which the mean is taken (10)")
    parser.add_argument("--rate", type=float, default=1000, help="requests a second (1000)")
    parser.add_argument("--size", default="1g", help="of fio's volume (1g)")
    parser.add_argument("--volumes", type=int, default=10000, help="of the daemon with many (10000)")
    parser.add_argument("--idle", type=float, default=20, help="seconds for which it is watched at rest (20)")
    parser.add_argument("--blockd", default=os.environ.get("BLOCKD", "out/blockd"))
    parser.add_argument("--blockd-options", default="", help="further options of the daemon")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    return run_bench("api", bench, options, "/dev/shm" if options.backing == "shm" else options.scratch, {"backing": options.backing})


if __name__ == "__main__":
    sys.exit(main())

"""A server of ours beside its peers in interleaved rounds, of which medians are taken: what nbd.py and iscsi.py share."""

import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time

import machine
from machine import BenchError
from workloads import judge

# A run during which the hypervisor took more of the machine than this is made once more, and the better of the two is kept.
STOLEN_CORES_MAX = 0.15

FIGURES = ("iops", "mb_per_s", "p50_us", "p99_us", "cpu_us_per_io", "client_cores", "other_cores", "stolen_cores")


def common_arguments(parser, peers):
    """Options that every comparison takes."""
    parser.add_argument("--quick", action="store_true", help="small volumes, short runs, fewer peers and lines: less than 5 minutes")
    parser.add_argument("--backing", choices=["shm", "disk", "both"], default="both", help="files in /dev/shm, on the disk, or both (default)")
    parser.add_argument("--only", metavar="PATTERN", help="regular expression on backing/transport/workload, as in the first column of the table")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of which medians are taken (default 5, quick 3 if there is time)")
    parser.add_argument("--seconds", type=float, help="of each run (default 8, quick 1)")
    parser.add_argument("--size", help="of the volume (default 2g, quick 512m)")
    parser.add_argument("--servers", metavar="NAMES", help="peers beside blockd, comma separated: " + ",".join(peers))
    parser.add_argument("--blockd", default=os.environ.get("BLOCKD", "out/blockd"), help="program to measure (default out/blockd, or $BLOCKD)")
    parser.add_argument("--blockd-options", default="", help="further options of the daemon, for instance '--engine aio'")
    parser.add_argument("--scratch", help="folder on the disk for the disk backing (default: the temporary folder)")
    parser.add_argument("--budget", type=float, help="seconds after which no further round begins (default with --quick: 270)")
    parser.add_argument("--json", metavar="FILE", help="write every round and the medians here")


def parsed(parser, peers):
    """The options with their defaults filled in."""
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 8)
    options.size = machine.parse_size(options.size or ("512m" if options.quick else "2g"))
    if options.budget is None and options.quick:
        options.budget = 270
    unknown = [name for name in (options.servers or "").split(",") if name and name not in peers]
    if unknown:
        parser.error(f"--servers: {unknown[0]} is not known; allowed: {', '.join(peers)}")
    return options


class Comparison:
    """Runs everything and keeps every figure. The subclass names servers and lines, and measures one line of one server."""

    script = ""
    transports = ("tcp",)
    workloads = ()

    def __init__(self, options):
        self.options = options
        self.began = time.monotonic()
        self.runs = []
        self.notes = {}

    def servers(self, folder, direct, names):
        """blockd and the peers of these names."""
        raise NotImplementedError

    def wanted(self, backing, transport):
        """Workloads of a phase."""
        raise NotImplementedError

    def peers(self, workloads, transport):
        """Names of the servers of a phase beside blockd."""
        raise NotImplementedError

    def measures(self, server, workload):
        """Whether a server takes part in a line."""
        return True

    def warm(self, transport, server):
        """Lets compilers and caches come to rest; not measured."""
        raise NotImplementedError

    def measure(self, number, transport, workload, server):
        """One run; its figures as a dictionary."""
        raise NotImplementedError

    def after_rounds(self, backing, transport, workloads, servers):
        """Lines that do not fit into the rounds."""

    def in_rounds(self, workloads):
        """Those that do."""
        return workloads

    def say(self, text):
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", file=sys.stderr, flush=True)

    def backing(self, backing, share):
        parent = "/dev/shm" if backing == "shm" else self.options.scratch or tempfile.gettempdir()
        kind = machine.filesystem(parent)
        if backing == "disk" and kind == "tmpfs":
            raise BenchError(f"{parent} is in RAM; name a folder on a disk with --scratch")
        phases = [(t, self.wanted(backing, t)) for t in self.transports]
        phases = [(transport, workloads) for transport, workloads in phases if workloads]
        if not phases:
            return
        folder = tempfile.mkdtemp(prefix="blockd-bench-", dir=parent)
        direct = machine.takes_direct(folder)
        names = []
        for transport, workloads in phases:
            names += [name for name in self.peers(workloads, transport) if name not in names]
        servers = self.servers(folder, direct, names)
        self.notes[backing] = {"filesystem": kind, "direct": direct, "servers": {s.name: s.note() for s in servers}}
        try:
            machine.need_space(folder, int(sum(s.needs_factor for s in servers) * self.options.size) + (512 << 20))
            for server in servers:
                self.say(f"{backing}: filling {self.options.size >> 20} MiB of {server.name}")
                server.prepare()
            for at, (transport, workloads) in enumerate(phases):
                # Of what is left, a phase may use what it would take if all runs took the same time.
                weight = sum(len(w) for _, w in phases[at:])
                deadline = share and time.monotonic() + (share - time.monotonic()) * len(workloads) / weight
                beside = self.peers(workloads, transport)
                self.phase(backing, transport, workloads, [s for s in servers if s.name == "blockd" or s.name in beside], deadline)
        finally:
            for server in servers:
                server.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def phase(self, backing, transport, workloads, servers, deadline):
        for server in servers:
            server.start(transport)
            self.warm(transport, server)
        plain = self.in_rounds(workloads)
        if deadline and len(plain) < len(workloads):
            deadline -= (deadline - time.monotonic()) / 5
        took = 0.0
        for number in range(1, self.options.rounds + 1):
            if deadline and number > 1 and time.monotonic() + took > deadline:
                self.say(f"{backing}/{transport}: no time for round {number}")
                break
            started = time.monotonic()
            for workload in plain:
                turn = (number - 1) % len(servers)
                for server in servers[turn:] + servers[:turn]:
                    if self.measures(server, workload):
                        figures = self.measure(number, transport, workload, server)
                        if figures["stolen_cores"] > STOLEN_CORES_MAX:
                            again = self.measure(number, transport, workload, server)
                            figures = min(figures, again, key=lambda f: f["stolen_cores"])
                        self.keep(number, backing, transport, workload, server, figures)
            took = time.monotonic() - started
        self.after_rounds(backing, transport, workloads, servers)
        for server in servers:
            server.stop()

    def keep(self, number, backing, transport, workload, server, figures):
        told = figures.get("client_cpu_us_per_io")
        figures["client_cores"] = told * figures["iops"] / 1e6 if told is not None else None
        run = {"round": number, "backing": backing, "transport": transport, "workload": workload.name, "server": server.name, **figures}
        self.runs.append(run)
        cpu = f"{figures['cpu_us_per_io']:6.1f} us CPU/IO" if figures["cpu_us_per_io"] is not None else ""
        self.say(f"round {number} {backing}/{transport}/{workload.name} {server.name}: "
                 f"{figures['iops']:.0f} IOPS {figures['mb_per_s']:.0f} MB/s {cpu}")

    def medians(self):
        """Medians of the rounds by (backing, transport, workload) and server."""
        groups = {}
        for run in self.runs:
            line = groups.setdefault((run["backing"], run["transport"], run["workload"]), {})
            line.setdefault(run["server"], []).append(run)
        return {line: {server: {**{figure: statistics.median(r[figure] for r in runs) if runs[0][figure] is not None else None
                                   for figure in FIGURES}, "rounds": len(runs)}
                       for server, runs in servers.items()}
                for line, servers in groups.items()}

    def summary(self):
        """The lines of the table with ratios and verdicts, ready for JSON."""
        lines = []
        known = {w.name: w for w in self.workloads}
        medians = self.medians()
        for (backing, transport, name), servers in medians.items():
            workload = known[name]
            verdicts = []
            for target in workload.targets.get(backing, []):
                results = []
                for way in (target, target.other):
                    if way:
                        beside = medians.get((backing, transport, way.line or name), {})
                        results.append(judge(way, servers.get("blockd"), beside.get(way.peer)))
                # The one that is met, else the first that was measured; of two that are missed both are told.
                measured = [r for r in results if r]
                result = next((r for r in measured if r[1]), measured[0] if measured else None)
                verdicts.append({"target": target.text(), "ratio": result and result[0], "met": result and result[1],
                                 "other_ratio": measured[1][0] if len(measured) > 1 and not result[1] else None})
            lines.append({"backing": backing, "transport": transport, "workload": name, "what": workload.what, "metric": workload.metric,
                          "servers": servers, "targets": verdicts})
        return lines

    def run(self):
        backings = ["shm", "disk"] if self.options.backing == "both" else [self.options.backing]
        for at, backing in enumerate(backings):
            share = None
            if self.options.budget:
                left = self.began + self.options.budget - time.monotonic()
                share = time.monotonic() + left / (len(backings) - at)
            self.backing(backing, share)
        if not self.runs:
            raise BenchError(f"--only matches no line; lines are backing/transport/workload, for instance shm/{self.transports[0]}/"
                             + ", ".join(w.name for w in self.workloads))


def ratio_text(ours, theirs, metric):
    if not ours or not theirs or not ours.get(metric) or not theirs.get(metric):
        return "-"
    return f"{ours[metric] / theirs[metric]:.2f}x"


def number_text(value):
    return f"{value:>9.0f}" if value else f"{'-':>9}"


def show(about, notes, lines):
    """The table for people."""
    box = about["machine"]
    print(f"{about['date']}  commit {about['commit'][:12]}{'+changes' if '+' in about['commit'] else ''}  kernel {about['kernel']}  "
          f"{box['cores']} cores  {box['cpu']}")
    for name, version in about["versions"].items():
        print(f"  {name}: {version}")
    phase = None
    for line in lines:
        if phase != (line["backing"], line["transport"]):
            phase = (line["backing"], line["transport"])
            note = notes[line["backing"]]
            print(f"\n== {line['backing']} ({note['filesystem']}{'' if note['direct'] else ', no O_DIRECT'}) over {line['transport']}")
            for server, text in note["servers"].items():
                print(f"   {server}: {text}")
            print(f"\n{'workload':<34}{'IOPS':>9}{'MB/s':>8}{'p50 us':>9}{'p99 us':>9}{'cpu us/io':>11}{'client':>8}{'noise':>7}  blockd/it  cpu")
        ours = line["servers"].get("blockd")
        print(line["workload"])
        for server, f in line["servers"].items():
            cpu = f"{f['cpu_us_per_io']:.1f}" if f["cpu_us_per_io"] is not None else "-"
            beside = "" if server == "blockd" else (
                f"{ratio_text(ours, f, line['metric']):>9} {ratio_text(ours, f, 'cpu_us_per_io'):>6}")
            client = f"{f['client_cores']:.2f}" if f["client_cores"] is not None else "-"
            print(f"    {server:<30}{f['iops']:>9.0f}{f['mb_per_s']:>8.0f}{number_text(f['p50_us'])}{number_text(f['p99_us'])}{cpu:>11}"
                  f"{client:>8}{f['other_cores']:>7.2f}  {beside}".rstrip())
        for verdict in line["targets"]:
            also = f"; {verdict['other_ratio']:.2f}x" if verdict["other_ratio"] is not None else ""
            said = "not measured" if verdict["met"] is None else f"{'met' if verdict['met'] else 'MISSED'} ({verdict['ratio']:.2f}x{also})"
            print(f"    target {verdict['target']}: {said}")
    verdicts = [v for line in lines for v in line["targets"] if v["met"] is not None]
    rounds = [f["rounds"] for line in lines for f in line["servers"].values()]
    print(f"\n{sum(v['met'] for v in verdicts)} of {len(verdicts)} targets met; medians of {min(rounds)} to {max(rounds)} rounds. "
          "'client': cores that the clients used: one thread can use 1.00. 'noise': cores that neither server nor client used; compare only within this run.")


def main(make, versions):
    """Runs a comparison from the command line: `make` answers it, `versions` are programs whose version belongs to the result."""
    machine.stop_cleanly()
    bench = make()
    options = bench.options
    about = machine.describe(options.blockd, versions)
    try:
        bench.run()
    except BenchError as e:
        print(f"{bench.script}: {e}", file=sys.stderr)
        return 1
    lines = bench.summary()
    show(about, bench.notes, lines)
    if options.json:
        settings = {k: getattr(options, k) for k in ("quick", "rounds", "seconds", "size", "only", "blockd_options")}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "settings": settings, "backings": bench.notes, "lines": lines, "runs": bench.runs}, file, indent=1)
            file.write("\n")
    print(f"took {time.monotonic() - bench.began:.0f} s")
    return 0

"""The workloads, the targets of each, and the comparison."""

from dataclasses import dataclass, field


@dataclass
class Target:
    """What blockd shall reach: its figure divided by the peer's, at least (or, for CPU, at most) this."""

    peer: str
    metric: str
    ratio: float
    at_most: bool = False
    line: str = ""  # the workload that it is compared with, when that is another
    other: "Target | None" = None  # that this one is met suffices too

    def text(self):
        own = f"{'<=' if self.at_most else '>='}{self.ratio:g}x {self.peer}{' cpu' if self.at_most else ''}{' ' + self.line if self.line else ''}"
        return f"{own} or {self.other.text()}" if self.other else own


@dataclass
class Workload:
    """A fio job. `peers` are the servers beside blockd that are worth the time in a quick run."""

    name: str
    what: str
    rw: str
    block: str
    depth: int
    connections: int = 1
    metric: str = "iops"
    quick_tcp: bool = False
    many_peers: bool = False
    targets: dict = field(default_factory=dict)

    def fio(self, size, seconds, seed):
        """Arguments for a volume of `size` bytes. Random jobs have its lower half, jobs in order the upper one: what random
        overwrites do to a redirecting store's layout is the question of the aged line, and of no other."""
        half = size // 2
        offset = 0 if self.rw.startswith("rand") else half
        return [f"--rw={self.rw}", f"--bs={self.block}", f"--iodepth={self.depth}", f"--numjobs={self.connections}",
                f"--offset={offset}", f"--size={half}", "--time_based=1", f"--runtime={seconds}", f"--randseed={seed}", "--norandommap=1"]


def q(metric, ratio):
    return Target("qemu-nbd", metric, ratio)


CPU_READ = Target("qemu-nbd", "cpu_us_per_io", 0.65, at_most=True)
CPU_WRITE = Target("qemu-nbd", "cpu_us_per_io", 0.7, at_most=True)

WORKLOADS = [
    Workload("randread-4k-qd32", "4k random read, QD32", "randread", "4k", 32, quick_tcp=True, many_peers=True,
             targets={"shm": [q("iops", 1.5), CPU_READ], "disk": [Target("raw", "iops", 0.9), q("iops", 1.0), CPU_READ]}),
    Workload("randwrite-4k-qd32", "4k random write, QD32", "randwrite", "4k", 32, quick_tcp=True, many_peers=True,
             targets={"shm": [q("iops", 1.5), CPU_WRITE], "disk": [q("iops", 1.8), CPU_WRITE]}),
    Workload("randread-4k-4x32", "4k random read, 4 connections, QD32 each", "randread", "4k", 32, connections=4,
             targets={"shm": [q("iops", 2.0), CPU_READ], "disk": [q("iops", 1.0)]}),
    Workload("randwrite-4k-4x32", "4k random write, 4 connections, QD32 each", "randwrite", "4k", 32, connections=4,
             targets={"shm": [q("iops", 2.0), CPU_WRITE]}),
    Workload("randread-4k-qd1", "4k random read, QD1", "randread", "4k", 1,
             targets={"shm": [q("iops", 1.0)], "disk": [q("iops", 1.2)]}),
    Workload("randwrite-4k-qd1", "4k random write, QD1", "randwrite", "4k", 1,
             targets={"shm": [q("iops", 1.0)], "disk": [q("iops", 1.0)]}),
    Workload("read-128k-qd16", "128k sequential read, QD16", "read", "128k", 16, metric="mb_per_s",
             targets={"shm": [q("mb_per_s", 2.5)]}),
    Workload("write-128k-qd16", "128k sequential write, QD16", "write", "128k", 16, metric="mb_per_s",
             targets={"shm": [q("mb_per_s", 2.0)], "disk": [q("mb_per_s", 1.5)]}),
]

# After a random overwrite of every block of a region, twice. Published without a target.
AGED = Workload("aged-read-128k-qd16", "128k sequential read of a region whose blocks were all overwritten at random, twice", "read",
                "128k", 16, metric="mb_per_s")
# The same, after blockd was left alone until it had laid the region out anew.
RELAID = Workload("relaid-read-128k-qd16", "128k sequential read of such a region after relayout", "read", "128k", 16, metric="mb_per_s")
AGED_OVERWRITE = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--loops=2"]


def judge(target, ours, theirs):
    """(ratio, met) of two medians, or None when one is missing."""
    if not ours or not theirs or not ours.get(target.metric) or not theirs.get(target.metric):
        return None
    ratio = ours[target.metric] / theirs[target.metric]
    return ratio, ratio <= target.ratio if target.at_most else ratio >= target.ratio

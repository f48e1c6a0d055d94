"""The machine: what it is, which core runs what, and how much processor time and memory a process has used."""

from __future__ import annotations

import os
import platform
import re
import resource
from dataclasses import dataclass
from pathlib import Path

PROXY_CORE, LOAD_CORE = 0, 1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
WANTED_FILES = 16_384


def pinned(core: int, *command: str | Path) -> list[str | Path]:
    """``command`` on one core only. taskset becomes the program, so the pid stays."""
    return ["taskset", "-c", str(core), *command]


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Processor seconds used so far, in the program and in the kernel on its behalf."""

    user_s: float
    system_s: float

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s - other.user_s, self.system_s - other.system_s)

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.system_s + other.system_s)

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s


def cpu_time(pid: int) -> CpuTime:
    """Of a process with all its threads and its living descendants (workers)."""
    total = CpuTime(0.0, 0.0)
    for each in family(pid):
        fields = _stat(each)
        total += CpuTime(int(fields[11]) / TICKS_PER_S, int(fields[12]) / TICKS_PER_S)
    return total


def rss_bytes(pid: int) -> int:
    """Resident memory of one process, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def family(pid: int) -> list[int]:
    """The process and its living descendants, parents before children."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the hard limit lets them, at most WANTED_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def description() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    is_virtual = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None
    return {
        "processor": f"{model[1] if model else platform.machine()}, {cores()} cores"
        + (", a virtual machine" if is_virtual else ""),
        "memory": f"{int(memory[1]) / 1024 / 1024:.1f} GiB" if memory else "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
    }

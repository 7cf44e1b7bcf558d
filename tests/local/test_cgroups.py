"""The limits of control groups, read from file trees as they look in containers, slices and on bare machines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.core.host import Memory
from orchestrator.drivers.cgroups import Bound, Kills, Limits, cpus_in, limits, threads, usable_cpus
from orchestrator.drivers.memory import memory_within

MIB, GIB = 2**20, 2**30
V1_UNLIMITED = 9223372036854771712
FS = "/sys/fs/cgroup"
ID = "3f1c9a7b5d2e4f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8"
SCOPE = f"/system.slice/docker-{ID}.scope"
POD = "/kubepods/burstable/pod0f3b2a/9c1d"
APP = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-u7.scope"


def v2(root: str = "/", point: str = FS) -> str:
    """A line of mountinfo: the unified hierarchy, of which the group `root` is seen at `point`."""
    options = "rw,nosuid,nodev,noexec,relatime shared:4"
    return f"30 23 0:26 {root} {point} {options} - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def v1(root: str = "/", point: str = f"{FS}/memory", controllers: str = "memory") -> str:
    """The same of a hierarchy of version 1."""
    return f"35 31 0:32 {root} {point} ro,nosuid,nodev,noexec,relatime - cgroup cgroup rw,{controllers}\n"


def memory_v2(limit: int | str, used: int, cache: int = 0, high: int | str = "max", kills: int = 0) -> dict[str, str]:
    """The memory files of one group."""
    return {
        "memory.max": f"{limit}\n",
        "memory.high": f"{high}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon {used - cache}\nfile {cache}\ninactive_file {cache}\nactive_file 0\n",
        "memory.events": f"low 0\nhigh 0\nmax 7\noom {kills}\noom_kill {kills}\noom_group_kill 0\n",
    }


def memory_v1(limit: int, used: int, cache: int = 0, hierarchical: int | None = None, kills: int = 0) -> dict[str, str]:
    """The same of version 1."""
    above = limit if hierarchical is None else hierarchical
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"inactive_file 1\nhierarchical_memory_limit {above}\ntotal_inactive_file {cache}\n",
        "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    }


def cpu_v2(text: str) -> dict[str, str]:
    return {"cpu.max": f"{text}\n"}


def cpu_v1(quota: int, period: int = 100_000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}


@dataclass(frozen=True)
class Machine:
    """What a process sees: its cgroup and mountinfo, and files by the directory that they are in. `memory` is what is
    to be found: limit, used and file of the tightest; `cpus` the least quota; `kills` where they are counted."""

    cgroup: str
    mountinfo: str
    files: Mapping[str, Mapping[str, str]]
    memory: tuple[int, int, str] | None = None
    cpus: float | None = None
    kills: str = ""
    others: str = field(default="24 1 0:22 / /proc rw,relatime - proc proc rw\n25 1 254:0 / / rw - ext4 /dev/vda rw\n")

    def lay(self, root: Path) -> None:
        for place, files in self.files.items():
            directory = root / place.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (directory / name).write_text(text)

    def limits(self, root: Path, **options: bool) -> Limits:
        return limits(root, self.cgroup, self.others + self.mountinfo, **options)


MACHINES = {
    # docker run -m 700m --cpus 1.5, whose namespace of groups is its own
    "v2 docker, private namespace": Machine(
        "0::/\n",
        v2(),
        {FS: memory_v2(700 * MIB, 200 * MIB, 50 * MIB) | cpu_v2("150000 100000")},
        (700 * MIB, 150 * MIB, f"{FS}/memory.max"),
        1.5,
        f"{FS}/memory.events",
    ),
    # --cgroupns=host: the whole tree of the machine is there, and the path is the machine's
    "v2 docker, the host's namespace": Machine(
        f"0::{SCOPE}\n",
        v2(),
        {
            f"{FS}{SCOPE}": memory_v2(GIB, 300 * MIB) | cpu_v2("max 100000"),
            f"{FS}/system.slice": memory_v2("max", 9 * GIB) | cpu_v2("max 100000"),
            FS: {"cgroup.controllers": "cpuset cpu io memory pids\n", "memory.stat": "inactive_file 5\n"},
        },
        (GIB, 300 * MIB, f"{FS}{SCOPE}/memory.max"),
        None,
        f"{FS}{SCOPE}/memory.events",
    ),
    # the same where only its own group was mounted
    "v2 docker, the host's namespace, its own group": Machine(
        f"0::{SCOPE}\n",
        v2(SCOPE),
        {FS: memory_v2(GIB, 300 * MIB)},
        (GIB, 300 * MIB, f"{FS}/memory.max"),
        None,
        f"{FS}/memory.events",
    ),
    # a service of a systemd that runs in a container
    "v2 lxc": Machine(
        "0::/system.slice/ssh.service\n",
        v2(),
        {
            f"{FS}/system.slice/ssh.service": memory_v2("max", 10 * MIB) | cpu_v2("max 100000"),
            f"{FS}/system.slice": memory_v2("max", 60 * MIB) | cpu_v2("max 100000"),
            FS: memory_v2(2 * GIB, GIB, 100 * MIB) | cpu_v2("200000 100000"),
        },
        (2 * GIB, GIB - 100 * MIB, f"{FS}/memory.max"),
        2.0,
        f"{FS}/system.slice/ssh.service/memory.events",
    ),
    # systemd-run --user --scope -p MemoryMax=2G below a slice whose users have taken nearly all of its 4 GiB
    "v2 slices, the outer one is fuller": Machine(
        f"0::{APP}\n",
        v2(),
        {
            f"{FS}{APP}": memory_v2(2 * GIB, 100 * MIB) | cpu_v2("400000 100000"),
            f"{FS}/user.slice/user-1000.slice/user@1000.service/app.slice": memory_v2("max", 3 * GIB),
            f"{FS}/user.slice/user-1000.slice": memory_v2(4 * GIB, 4 * GIB - 300 * MIB) | cpu_v2("50000 20000"),
            f"{FS}/user.slice": memory_v2("max", 5 * GIB) | cpu_v2("max 100000"),
            FS: {"memory.stat": "inactive_file 5\n"},
        },
        (4 * GIB, 4 * GIB - 300 * MIB, f"{FS}/user.slice/user-1000.slice/memory.max"),
        2.5,
        f"{FS}{APP}/memory.events",
    ),
    "v2 slices, the inner one is fuller": Machine(
        f"0::{APP}\n",
        v2(),
        {
            f"{FS}{APP}": memory_v2(2 * GIB, 2 * GIB - 10 * MIB),
            f"{FS}/user.slice/user-1000.slice": memory_v2(4 * GIB, 3 * GIB),
        },
        (2 * GIB, 2 * GIB - 10 * MIB, f"{FS}{APP}/memory.max"),
        None,
        f"{FS}{APP}/memory.events",
    ),
    "v2 slowed down before it is full": Machine(
        "0::/a.slice\n",
        v2(),
        {f"{FS}/a.slice": memory_v2(2 * GIB, 100 * MIB, high=GIB)},
        (GIB, 100 * MIB, f"{FS}/a.slice/memory.high"),
        None,
        f"{FS}/a.slice/memory.events",
    ),
    "v2 unlimited": Machine(
        "0::/user.slice/user-0.slice/session-3.scope\n",
        v2(),
        {
            f"{FS}/user.slice/user-0.slice/session-3.scope": memory_v2("max", GIB) | cpu_v2("max 100000"),
            FS: {"cgroup.controllers": "cpu memory\n"},
        },
        kills=f"{FS}/user.slice/user-0.slice/session-3.scope/memory.events",
    ),
    "v2 the root itself": Machine("0::/\n", v2(), {FS: {"cgroup.controllers": "cpu memory\n"}}),
    # docker run -m 700m of an older machine: paths are the machine's, and its own groups are mounted
    "v1 docker": Machine(
        f"5:cpu,cpuacct:/docker/{ID}\n4:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n",
        v1(f"/docker/{ID}") + v1(f"/docker/{ID}", f"{FS}/cpu,cpuacct", "cpu,cpuacct"),
        {
            f"{FS}/memory": memory_v1(700 * MIB, 250 * MIB, 50 * MIB),
            f"{FS}/cpu,cpuacct": cpu_v1(50_000),
        },
        (700 * MIB, 200 * MIB, f"{FS}/memory/memory.limit_in_bytes"),
        0.5,
        f"{FS}/memory/memory.oom_control",
    ),
    "v1 docker, private namespace": Machine(
        "4:memory:/\n",
        v1(),
        {f"{FS}/memory": memory_v1(700 * MIB, 250 * MIB)},
        (700 * MIB, 250 * MIB, f"{FS}/memory/memory.limit_in_bytes"),
        None,
        f"{FS}/memory/memory.oom_control",
    ),
    # docker run --cgroup-parent: the limit is set on a group that the container does not see
    "v1 docker in a group with a limit": Machine(
        f"4:memory:/batch/{ID}\n",
        v1(f"/batch/{ID}"),
        {f"{FS}/memory": memory_v1(V1_UNLIMITED, 250 * MIB, hierarchical=GIB)},
        (GIB, 250 * MIB, f"{FS}/memory/memory.stat"),
        None,
        f"{FS}/memory/memory.oom_control",
    ),
    "v1 pod": Machine(
        f"11:memory:{POD}\n6:cpuacct,cpu:{POD}\n",
        v1(POD) + v1(POD, f"{FS}/cpu", "cpuacct,cpu"),
        {f"{FS}/memory": memory_v1(3 * GIB, GIB), f"{FS}/cpu": cpu_v1(300_000)},
        (3 * GIB, GIB, f"{FS}/memory/memory.limit_in_bytes"),
        3.0,
        f"{FS}/memory/memory.oom_control",
    ),
    "v1 lxc": Machine(
        "4:memory:/lxc/101/ns/init.scope\n3:cpu:/lxc/101/ns\n",
        v1("/lxc/101/ns") + v1("/lxc/101/ns", f"{FS}/cpu", "cpu"),
        {
            f"{FS}/memory/init.scope": memory_v1(V1_UNLIMITED, 5 * MIB, hierarchical=512 * MIB),
            f"{FS}/memory": memory_v1(V1_UNLIMITED, 400 * MIB, hierarchical=512 * MIB),
            f"{FS}/cpu": cpu_v1(-1),
        },
        (512 * MIB, 400 * MIB, f"{FS}/memory/memory.stat"),
        None,
        f"{FS}/memory/init.scope/memory.oom_control",
    ),
    "v1 slices": Machine(
        "4:memory:/a.slice/a-b.slice/c.service\n3:cpu:/a.slice/a-b.slice\n",
        v1() + v1("/", f"{FS}/cpu", "cpu"),
        {
            f"{FS}/memory/a.slice/a-b.slice/c.service": memory_v1(V1_UNLIMITED, 5 * MIB, hierarchical=GIB),
            f"{FS}/memory/a.slice/a-b.slice": memory_v1(2 * GIB, 50 * MIB, hierarchical=GIB),
            f"{FS}/memory/a.slice": memory_v1(GIB, 60 * MIB),
            f"{FS}/memory": memory_v1(V1_UNLIMITED, 20 * GIB),
            f"{FS}/cpu/a.slice/a-b.slice": cpu_v1(800_000),
            f"{FS}/cpu/a.slice": cpu_v1(600_000, 200_000),
            f"{FS}/cpu": cpu_v1(-1),
        },
        (GIB, 60 * MIB, f"{FS}/memory/a.slice/memory.limit_in_bytes"),
        3.0,
        f"{FS}/memory/a.slice/a-b.slice/c.service/memory.oom_control",
    ),
    # Version 2 is there for systemd alone.
    "v1 beside v2, unlimited": Machine(
        "4:memory:/one\n1:name=systemd:/init.scope\n0::/init.scope\n",
        v1() + v2(point=f"{FS}/unified"),
        {
            f"{FS}/memory/one": memory_v1(V1_UNLIMITED, GIB),
            f"{FS}/memory": memory_v1(V1_UNLIMITED, 2 * GIB),
            f"{FS}/unified/init.scope": {"cgroup.procs": "1\n"},
        },
        kills=f"{FS}/memory/one/memory.oom_control",
    ),
    # The machine's hierarchy was mounted into a container beside its own, which shows less of the way up.
    "v1 mounted twice": Machine(
        f"4:memory:/batch/{ID}\n",
        v1(f"/batch/{ID}") + v1("/", "/host/memory"),
        {
            f"{FS}/memory": memory_v1(GIB, 250 * MIB),
            f"/host/memory/batch/{ID}": memory_v1(GIB, 250 * MIB),
            "/host/memory/batch": memory_v1(2 * GIB, 2 * GIB - MIB),
        },
        (2 * GIB, 2 * GIB - MIB, "/host/memory/batch/memory.limit_in_bytes"),
        None,
        f"/host/memory/batch/{ID}/memory.oom_control",
    ),
    # What is mounted was made outside of the namespace: its path begins above the namespace's root.
    "v2 outside of its namespace": Machine(
        "0::/\n", v2("/../.."), {FS: memory_v2(3 * GIB, GIB)}, (3 * GIB, GIB, f"{FS}/memory.max")
    ),
    "v2 a process elsewhere": Machine(
        "0::/../other\n", v2(), {FS: memory_v2(3 * GIB, GIB)}, (3 * GIB, GIB, f"{FS}/memory.max")
    ),
    "v2 a group that was removed": Machine(
        "0::/a.slice/gone (deleted)\n",
        v2(),
        {f"{FS}/a.slice": memory_v2(GIB, MIB)},
        (GIB, MIB, f"{FS}/a.slice/memory.max"),
    ),
    "a place with a space in it": Machine(
        "0::/a:b c.slice\n",
        v2(point="/mnt/control\\040groups"),
        {"/mnt/control groups/a:b c.slice": memory_v2(GIB, MIB)},
        (GIB, MIB, "/mnt/control groups/a:b c.slice/memory.max"),
        None,
        "/mnt/control groups/a:b c.slice/memory.events",
    ),
    "files that say nothing": Machine(
        "0::/a\n3:cpu:/a\n",
        v2() + v1("/", f"{FS}/cpu", "cpu"),
        {f"{FS}/a": {"memory.max": "\n", "memory.current": "many\n"}, f"{FS}/cpu/a": cpu_v1(100_000, 0)},
    ),
    "a kernel that does not count": Machine(
        "4:memory:/a\n",
        v1(),
        {f"{FS}/memory/a": memory_v1(GIB, MIB) | {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}},
        (GIB, MIB, f"{FS}/memory/a/memory.limit_in_bytes"),
    ),
    "no groups": Machine("", "", {}),
    "no mounts": Machine("4:memory:/a\n0::/\n", "", {}),
    "broken lines": Machine(
        "4\n::\n0::/a\n",
        "1 2\n" + " - cgroup2\n" + v2(),
        {f"{FS}/a": memory_v2("max", 1)},
        kills=f"{FS}/a/memory.events",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_what_control_groups_leave(name: str, tmp_path: Path) -> None:
    machine = MACHINES[name]
    machine.lay(tmp_path)
    found = machine.limits(tmp_path)
    assert found.tightest == (Bound(*machine.memory) if machine.memory else None)
    assert found.cpus == machine.cpus
    assert found.kills == machine.kills


@pytest.mark.parametrize(
    ("name", "limit", "cpus"),
    [
        ("v2 lxc", 2 * GIB, 2.0),
        ("v2 docker, private namespace", 700 * MIB, 1.5),
        ("v1 lxc", 512 * MIB, None),
        # On a machine what is at the root holds for everything, and there is no limit.
        ("v2 slices, the inner one is fuller", None, None),
        ("v1 slices", None, None),
    ],
)
def test_what_holds_for_all_that_is_here(name: str, limit: int | None, cpus: float | None, tmp_path: Path) -> None:
    machine = MACHINES[name]
    machine.lay(tmp_path)
    found = machine.limits(tmp_path, all_here=True)
    assert (found.deadly, found.cpus, found.kills) == (limit, cpus, "")


def test_nothing_is_ended_where_it_is_only_slowed_down(tmp_path: Path) -> None:
    machine = MACHINES["v2 slowed down before it is full"]
    machine.lay(tmp_path)
    assert machine.limits(tmp_path).deadly == 2 * GIB


def test_what_files_cannot_be_read_does_not_matter(tmp_path: Path) -> None:
    machine = MACHINES["v2 docker, private namespace"]
    machine.lay(tmp_path)
    (tmp_path / FS.lstrip("/") / "memory.max").unlink()
    (tmp_path / FS.lstrip("/") / "memory.max").mkdir()
    assert machine.limits(tmp_path).memory == ()


MACHINE = Memory(24 * GIB, 20 * GIB)


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        ((), MACHINE),
        ((Bound(700 * MIB, 200 * MIB, "/f"),), Memory(700 * MIB, 500 * MIB, "/f")),
        ((Bound(700 * MIB, 900 * MIB, "/f"),), Memory(700 * MIB, 0, "/f")),
        # Never more than the machine has.
        ((Bound(22 * GIB, GIB, "/f"),), MACHINE),
        ((Bound(30 * GIB, 29 * GIB, "/f"),), MACHINE),
        ((Bound(30 * GIB, 29 * GIB, "/f"), Bound(8 * GIB, GIB, "/g")), Memory(8 * GIB, 7 * GIB, "/g")),
    ],
)
def test_the_memory_that_is_left(bounds: tuple[Bound, ...], left: Memory) -> None:
    assert memory_within(Limits(bounds), MACHINE) == left


def test_memory_is_called_by_whose_it_is() -> None:
    assert MACHINE.name == "this machine"
    assert Memory(700 * MIB, 0, "/f").name == "this control group (700 MiB)"


@pytest.mark.parametrize(("quota", "cpus"), [(None, 8), (16.0, 8), (1.5, 2), (2.0, 2), (0.1, 1)])
def test_a_part_of_a_cpu_counts_as_one(quota: float | None, cpus: int) -> None:
    here = len(os.sched_getaffinity(0))
    assert usable_cpus(Limits(cpus=quota)) == max(1, min(here, cpus))


def test_threads_leave_a_cpu_to_what_feeds_them() -> None:
    assert [threads(cpus) for cpus in (1, 2, 8)] == [1, 1, 7]


def test_lists_of_cpus() -> None:
    assert cpus_in("0-3,8\n".strip()) == {0, 1, 2, 3, 8}
    assert cpus_in("") == frozenset()


def test_where_no_group_counts_the_machine_does() -> None:
    nobody = Kills(2**22 + 1)
    assert (nobody.of_group, nobody.limit, nobody.more()) == (False, 0, False)

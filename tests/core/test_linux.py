"""Facts of a host: fake trees for every layout a kernel can show, and the machine the tests run on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import attrs
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from hvcore.errors import HostError
from hvcore.linux import (
    CPU_ID_LIMIT,
    boot_id,
    online_cpus,
    parse_cpu_list,
    powercycle,
    process_start_time,
    read_node_info,
)
from hvcore.model.host import CgroupMode, HugePagePool, NodeInfo, PowercycleMethod, PressureResource

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
BOOT_ID = "107c45a5-c773-4781-afca-dfa7d2690d50"
MEMINFO = "MemTotal:       16384 kB\nMemFree:         2048 kB\nMemAvailable:    8192 kB\nHugePages_Total:       0\n"
V1_UNLIMITED = "9223372036854771712\n"


@attrs.frozen
class Tree:
    """A root directory with a ``proc`` and a ``sys`` of our making."""

    root: Path

    def put(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def cpu(self, number: int, package: int, siblings: str) -> None:
        topology = f"sys/devices/system/cpu/cpu{number}/topology"
        self.put({f"{topology}/physical_package_id": f"{package}\n", f"{topology}/core_cpus_list": f"{siblings}\n"})

    def node(self, number: int, cpus: str, total: int, free: int, distance: str) -> None:
        """A NUMA node; memory in kibibytes."""
        base = f"sys/devices/system/node/node{number}"
        memory = f"Node {number} MemTotal:  {total} kB\nNode {number} MemFree:  {free} kB\n"
        self.put({f"{base}/cpulist": f"{cpus}\n", f"{base}/meminfo": memory, f"{base}/distance": f"{distance}\n"})

    def pool(self, directory: str, size: int, total: int, free: int, reserved: int | None = None) -> None:
        """A pool of huge pages; the page size in kibibytes."""
        base = f"{directory}/hugepages-{size}kB"
        self.put({f"{base}/nr_hugepages": f"{total}\n", f"{base}/free_hugepages": f"{free}\n"})
        if reserved is not None:
            self.put({f"{base}/resv_hugepages": f"{reserved}\n"})

    def cgroups(self, membership: str, *mounts: str) -> None:
        """Memberships as in /proc/self/cgroup; mounts as "top directory type options"."""
        lines = []
        for number, mount in enumerate(mounts, start=30):
            top, directory, kind, options = mount.split(" ")
            lines.append(f"{number} 22 0:{number} {top} {directory} rw,relatime shared:9 - {kind} {kind} {options}\n")
        root_mount = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        self.put({"proc/self/cgroup": membership, "proc/self/mountinfo": root_mount + "".join(lines)})

    def read(self) -> NodeInfo:
        return read_node_info(self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """The least a kernel shows: two processors, memory, a boot id; no NUMA, huge pages, PSI or cgroups."""
    tree = Tree(tmp_path)
    tree.put(
        {
            "proc/meminfo": MEMINFO,
            "proc/sys/kernel/random/boot_id": f"{BOOT_ID}\n",
            "sys/devices/system/cpu/online": "0-1\n",
            "sys/devices/system/cpu/present": "0-1\n",
        }
    )
    tree.cpu(0, 0, "0")
    tree.cpu(1, 0, "1")
    return tree


@pytest.fixture
def big(tree: Tree) -> Tree:
    """Two sockets with two cores of two threads each, one NUMA node each, huge pages on the second only."""
    tree.put({f"sys/devices/system/cpu/{name}": "0-7\n" for name in ("online", "present")})
    for cpu in range(8):
        core = cpu % 4
        tree.cpu(cpu, core // 2, f"{core},{core + 4}")
    tree.put({"sys/devices/system/node/online": "0,2\n"})
    tree.node(0, "0-1,4-5", 8192, 1024, "10 21")
    tree.node(2, "2-3,6-7", 8000, 1000, "21 10")
    tree.pool("sys/kernel/mm/hugepages", 1048576, 1, 1, 0)
    tree.pool("sys/kernel/mm/hugepages", 2048, 64, 60, 7)
    tree.pool("sys/devices/system/node/node2/hugepages", 2048, 64, 60)
    return tree


def test_memory_is_in_bytes_and_free_is_what_can_be_had_without_swapping(tree: Tree) -> None:
    """Free memory is MemAvailable, used is the rest, all in bytes."""
    info = tree.read()
    assert (info.memory_total, info.memory_free, info.memory_used) == (16 * MIB, 8 * MIB, 8 * MIB)


def test_identity_comes_from_the_kernel(tree: Tree) -> None:
    """Host name, kernel and architecture are those of uname, the boot id that of procfs."""
    info = tree.read()
    expected = (platform.node(), platform.release(), platform.machine(), BOOT_ID)
    assert (info.hostname, info.kernel, info.architecture, info.boot_id) == expected


def test_the_hypervisor_is_left_to_the_driver(tree: Tree) -> None:
    """Reading a host tells nothing of any hypervisor."""
    assert tree.read().hypervisor == ()


@pytest.mark.parametrize(
    "meminfo",
    [
        "",
        "garbage\n",
        "\x00\xff\n",
        MEMINFO.replace("16384 kB", "plenty kB"),
        MEMINFO.replace("16384 kB", "-16384 kB"),
        MEMINFO.replace("16384 kB", "٣٣ kB"),
        MEMINFO.replace("16384 kB", "16384 MB"),
        MEMINFO.replace("16384 kB", "16384"),
        MEMINFO.replace("MemAvailable", "Available"),
    ],
)
def test_garbage_in_meminfo_is_a_host_error_that_names_the_file(tree: Tree, meminfo: str) -> None:
    """Amounts that cannot be understood are refused, never guessed."""
    tree.put({"proc/meminfo": meminfo})
    with pytest.raises(HostError, match="proc/meminfo: expected") as caught:
        tree.read()
    assert caught.value.code == "host-file-malformed"


def test_a_missing_meminfo_is_a_host_error(tree: Tree) -> None:
    """A file that every Linux has must be there."""
    (tree.root / "proc/meminfo").unlink()
    with pytest.raises(HostError, match="proc/meminfo: not there") as caught:
        tree.read()
    assert caught.value.hint == "are /proc and /sys mounted?"


@pytest.mark.parametrize(
    "name", ["proc/meminfo", "proc/pressure/cpu", "sys/devices/system/cpu/online", "proc/self/cgroup"]
)
def test_an_unreadable_file_is_a_host_error_with_its_cause(tree: Tree, name: str) -> None:
    """A file that is there but cannot be read is never taken for one that is missing."""
    (tree.root / name).unlink(missing_ok=True)
    (tree.root / name).mkdir(parents=True)
    with pytest.raises(HostError, match=f"{name}: Is a directory") as caught:
        tree.read()
    assert isinstance(caught.value.__cause__, IsADirectoryError)


def test_boot_id_alone(tree: Tree) -> None:
    """The boot id can be had without reading the rest."""
    assert boot_id(tree.root) == BOOT_ID


def test_a_boot_id_that_is_no_uuid_is_refused(tree: Tree) -> None:
    """Identity is compared, so it must be what the kernel promises."""
    tree.put({"proc/sys/kernel/random/boot_id": "yesterday\n"})
    with pytest.raises(HostError, match="boot_id: expected a UUID, found 'yesterday'"):
        boot_id(tree.root)


def test_two_sockets_with_threads_are_counted_as_they_are(big: Tree) -> None:
    """Sockets, cores and threads come from the topology, not from the number of processors."""
    info = big.read()
    counts = (info.cpus_online, info.cpus_total, info.sockets, info.cores, info.threads_per_core)
    assert counts == (8, 8, 2, 4, 2)


def test_offline_processors_count_as_present_only(big: Tree) -> None:
    """With one thread of each core and a whole socket offline, only what is left is counted."""
    big.put({"sys/devices/system/cpu/online": "0-1\n"})
    info = big.read()
    counts = (info.cpus_online, info.cpus_total, info.sockets, info.cores, info.threads_per_core)
    assert counts == (2, 8, 1, 2, 1)


def test_a_node_shows_only_processors_that_are_online(big: Tree) -> None:
    """An offline processor is in no node, so that nothing is pinned to it."""
    big.put({"sys/devices/system/cpu/online": "0-6\n"})
    assert [node.cpus for node in big.read().numa_nodes] == [(0, 1, 4, 5), (2, 3, 6)]


def test_a_processor_that_goes_offline_while_reading_is_tolerated(tree: Tree) -> None:
    """The kernel removes a processor's topology when it goes offline; the rest is still read."""
    tree.put({"sys/devices/system/cpu/online": "0-2\n"})
    info = tree.read()
    assert (info.sockets, info.threads_per_core) == (1, 1)


def test_a_processor_without_a_known_package_is_one_socket(tree: Tree) -> None:
    """Some machines say package -1; that is one socket, not an error."""
    tree.cpu(0, -1, "0")
    tree.cpu(1, -1, "1")
    assert tree.read().sockets == 1


def test_without_a_topology_every_processor_is_a_core_of_one_socket(tree: Tree) -> None:
    """Some virtual machines show processors only."""
    shutil.rmtree(tree.root / "sys/devices/system/cpu/cpu0")
    shutil.rmtree(tree.root / "sys/devices/system/cpu/cpu1")
    info = tree.read()
    assert (info.sockets, info.cores, info.threads_per_core) == (1, 2, 1)


def test_old_kernels_name_siblings_differently(tree: Tree) -> None:
    """Before Linux 5.4 the threads of a core are in thread_siblings_list."""
    for cpu in (0, 1):
        topology = tree.root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        (topology / "core_cpus_list").unlink()
        (topology / "thread_siblings_list").write_text("0-1\n")
    info = tree.read()
    assert (info.cores, info.threads_per_core) == (1, 2)


def test_without_sysfs_the_processors_of_proc_stat_count(tmp_path: Path) -> None:
    """/proc/stat lists what is online where sysfs is not mounted."""
    Tree(tmp_path).put({"proc/stat": "cpu  9 0 9\ncpu0 1 0 1\ncpu2 1 0 1\ncpu10 1 0 1\nintr 1\ncpufreq 2\n"})
    assert online_cpus(tmp_path) == (0, 2, 10)


@pytest.mark.parametrize("text", ["0-", "two", "1-0", ""])
def test_a_malformed_list_of_processors_is_a_host_error(tree: Tree, text: str) -> None:
    """What is no list, or a list of no processor at all, is refused."""
    tree.put({"sys/devices/system/cpu/online": f"{text}\n"})
    with pytest.raises(HostError, match="cpu/online: expected"):
        online_cpus(tree.root)


def test_a_host_without_numa_is_one_node_with_everything(tree: Tree) -> None:
    """Callers always find at least one node."""
    tree.pool("sys/kernel/mm/hugepages", 2048, 4, 3, 1)
    (node,) = tree.read().numa_nodes
    assert (node.id, node.cpus, node.distances) == (0, (0, 1), ((0, 10),))
    assert (node.memory_total, node.memory_free) == (16 * MIB, 2 * MIB)
    assert node.huge_pages == (HugePagePool(size=2 * MIB, total=4, free=3),)


def test_two_numa_nodes_with_a_gap_in_their_numbers(big: Tree) -> None:
    """Nodes keep the kernel's numbers, and distances name the node they lead to."""
    first, second = big.read().numa_nodes
    assert (first.id, second.id) == (0, 2)
    assert (first.distances, second.distances) == (((0, 10), (2, 21)), ((0, 21), (2, 10)))
    assert (second.memory_total, second.memory_free) == (8000 * KIB, 1000 * KIB)


def test_huge_pages_of_the_host_and_of_each_node(big: Tree) -> None:
    """Pools are sorted by page size in bytes, and a node has its own."""
    info = big.read()
    assert info.huge_pages == (
        HugePagePool(size=2 * MIB, total=64, free=60, reserved=7),
        HugePagePool(size=GIB, total=1, free=1, reserved=0),
    )
    expected = [(), (HugePagePool(size=2 * MIB, total=64, free=60, reserved=None),)]
    assert [node.huge_pages for node in info.numa_nodes] == expected


def test_a_node_of_memory_only_has_no_processors(big: Tree) -> None:
    """An empty processor list is a node of memory, not an error."""
    big.node(2, "", 8000, 1000, "21 10")
    assert big.read().numa_nodes[1].cpus == ()


@pytest.mark.parametrize("name", ["cpulist", "meminfo", "distance"])
def test_a_node_that_goes_offline_while_reading_is_left_out(big: Tree, name: str) -> None:
    """A node whose files vanish, between any two of them, is not reported."""
    (big.root / "sys/devices/system/node/node2" / name).unlink()
    assert [node.id for node in big.read().numa_nodes] == [0]


@pytest.mark.parametrize("distance", ["10", "10 21 30", "10 far"])
def test_distances_that_fit_no_nodes_are_a_host_error(big: Tree, distance: str) -> None:
    """There is one distance for each node online."""
    big.put({"sys/devices/system/node/node0/distance": distance})
    with pytest.raises(HostError, match="node0/distance: expected"):
        big.read()


def test_a_malformed_huge_page_count_is_a_host_error(big: Tree) -> None:
    """Counts are numbers."""
    big.put({"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "some\n"})
    with pytest.raises(HostError, match="free_hugepages: expected a number, found 'some'"):
        big.read()


def test_without_pressure_accounting_there_is_no_pressure(tree: Tree) -> None:
    """Absence is an empty tuple, not zeros."""
    assert tree.read().pressure == ()


def test_pressure_keeps_apart_what_the_kernel_does_not_account(tree: Tree) -> None:
    """A line the kernel lacks is None; a measured zero is zero."""
    line = "avg10=1.50 avg60=0.00 avg300=0.58 total=5475151\n"
    tree.put({"proc/pressure/cpu": f"some {line}", "proc/pressure/irq": f"full {line}"})
    cpu, irq = tree.read().pressure
    assert attrs.astuple(cpu) == (PressureResource.CPU, 1.5, 0.0, None, None)
    assert attrs.astuple(irq) == (PressureResource.IRQ, None, None, 1.5, 0.0)


@pytest.mark.parametrize("line", ["busy", "some avg10=x avg60=0.00 ", "most avg10=0.00 avg60=0.00 ", "some"])
def test_malformed_pressure_is_a_host_error(tree: Tree, line: str) -> None:
    """Pressure that cannot be understood is refused."""
    tree.put({"proc/pressure/io": f"{line}\n"})
    with pytest.raises(HostError, match="pressure/io: expected lines"):
        tree.read()


def test_a_kernel_without_cgroups(tree: Tree) -> None:
    """Nothing mounted, nothing limited."""
    facts = tree.read().cgroups
    assert (facts.mode, facts.controllers, facts.memory_limit) == (CgroupMode.NONE, (), None)


def test_cgroup_v1_takes_the_tightest_limit_up_to_the_root(tree: Tree) -> None:
    """A limit of a parent holds for its children; controllers may share a hierarchy."""
    tree.cgroups(
        "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/\n",
        "/ /sys/fs/cgroup/memory cgroup rw,memory",
        "/ /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct",
        "/ /sys/fs/cgroup/systemd cgroup rw,name=systemd",
    )
    limits = {"": V1_UNLIMITED, "a/": "1048576\n", "a/b/": "2097152\n"}
    base = "sys/fs/cgroup/memory"
    tree.put({f"{base}/{level}memory.limit_in_bytes": limit for level, limit in limits.items()})
    facts = tree.read().cgroups
    assert (facts.mode, facts.memory_limit) == (CgroupMode.V1, MIB)
    assert facts.controllers == (("cpu", 1), ("cpuacct", 1), ("memory", 1))


def test_cgroup_v2_reads_max_as_no_limit(tree: Tree) -> None:
    """The word max limits nothing, a number in a cgroup above it does."""
    tree.cgroups("0::/user/me\n", "/ /sys/fs/cgroup cgroup2 rw,nsdelegate")
    base = "sys/fs/cgroup"
    tree.put({f"{base}/cgroup.controllers": "cpu memory\n", f"{base}/user/me/memory.max": "max\n"})
    assert tree.read().cgroups.memory_limit is None
    tree.put({f"{base}/user/memory.max": "4096\n"})
    facts = tree.read().cgroups
    assert (facts.mode, facts.memory_limit) == (CgroupMode.V2, 4096)
    assert facts.controllers == (("cpu", 2), ("memory", 2))


def test_hybrid_cgroups_name_the_version_of_each_controller(tree: Tree) -> None:
    """With both hierarchies mounted, each controller is on exactly one of them."""
    tree.cgroups(
        "4:memory:/\n0::/\n",
        "/ /sys/fs/cgroup/memory cgroup rw,memory",
        "/ /sys/fs/cgroup/unified cgroup2 rw",
    )
    base = "sys/fs/cgroup"
    tree.put(
        {
            f"{base}/unified/cgroup.controllers": "hugetlb\n",
            f"{base}/memory/memory.limit_in_bytes": V1_UNLIMITED,
        }
    )
    facts = tree.read().cgroups
    assert (facts.mode, facts.memory_limit) == (CgroupMode.HYBRID, None)
    assert facts.controllers == (("hugetlb", 2), ("memory", 1))


@pytest.mark.parametrize(
    ("membership", "top"), [("/box/7/job", "/box/7"), ("/../elsewhere", "/"), ("/elsewhere", "/box/7")]
)
def test_a_container_sees_the_limit_of_the_cgroup_it_was_given(tree: Tree, membership: str, top: str) -> None:
    """The mounted directory is the container's cgroup, whatever path the kernel tells."""
    tree.cgroups(f"0::{membership}\n", f"{top} /sys/fs/cgroup cgroup2 rw")
    tree.put({"sys/fs/elsewhere/memory.max": "1\n", "sys/fs/cgroup/elsewhere/memory.max": "1\n"})
    tree.put({"sys/fs/cgroup/cgroup.controllers": "memory\n", "sys/fs/cgroup/memory.max": "8192\n"})
    assert tree.read().cgroups.memory_limit == 8192


def test_of_several_mounts_the_one_that_shows_our_cgroup_is_read(tree: Tree) -> None:
    """A hierarchy may be mounted again for somebody else."""
    tree.cgroups("0::/mine\n", "/box/7 /box cgroup2 rw", "/ /sys/fs/cgroup cgroup2 rw")
    for base, limit in (("box", 1), ("sys/fs/cgroup/mine", 4096)):
        tree.put({f"{base}/memory.max": f"{limit}\n"})
    tree.put({"box/cgroup.controllers": "memory\n", "sys/fs/cgroup/cgroup.controllers": "memory\n"})
    assert tree.read().cgroups.memory_limit == 4096


def test_a_controller_whose_hierarchy_is_not_mounted_is_left_out(tree: Tree) -> None:
    """What cannot be reached is of no use to anyone."""
    tree.cgroups("4:memory:/\n3:pids:/\n", "/ /sys/fs/cgroup/pids cgroup rw,pids")
    assert tree.read().cgroups.controllers == (("pids", 1),)


def test_a_mount_point_with_a_space_is_found(tree: Tree) -> None:
    """The kernel writes a space in a path as an octal escape."""
    tree.cgroups("0::/\n", r"/ /sys/my\040groups cgroup2 rw")
    tree.put({"sys/my groups/cgroup.controllers": "io\n"})
    assert tree.read().cgroups.controllers == (("io", 2),)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cgroup", "memory\n"),
        ("cgroup", "x:memory:/\n"),
        ("mountinfo", "22 1\n"),
        ("mountinfo", "1 2 3 4 5 6 - cgroup\n"),
    ],
)
def test_malformed_cgroup_files_are_a_host_error(tree: Tree, name: str, content: str) -> None:
    """Membership and mounts are understood or refused."""
    tree.cgroups("0::/\n")
    tree.put({f"proc/self/{name}": content})
    with pytest.raises(HostError, match=f"proc/self/{name}: expected"):
        tree.read()


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        ("\n", ()),
        ("0\n", (0,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        ("7,0-3,2", (0, 1, 2, 3, 7)),
        ("0-3:1/2", (0, 2)),
        ("0-15:2/4", (0, 1, 4, 5, 8, 9, 12, 13)),
        ("9-20:4/10", (9, 10, 11, 12, 19, 20)),
        ("5-5:1/9", (5,)),
        ("0-7:0/2", ()),
        (str(CPU_ID_LIMIT - 1), (CPU_ID_LIMIT - 1,)),
    ],
)
def test_processor_lists_in_the_notation_of_the_kernel(text: str, cpus: tuple[int, ...]) -> None:
    """Numbers, ranges and groups of ranges, in any order, overlapping or not."""
    assert parse_cpu_list(text) == cpus


NO_LISTS = (
    "a|,|0,|,0|0,,1|0 1| 0|0\n\n|-1|1-|3-1|1-2-3|0-3:1|0-3:/2|0-3:1/0|0-3:0/0|0-3:3/2|0-3:1/2/3|1:1/2|"
    f"0x1|+1|1_0|٣|N|all|{CPU_ID_LIMIT}|0-99999999999"
)


@pytest.mark.parametrize("text", NO_LISTS.split("|"))
def test_what_is_no_processor_list_is_refused_with_its_text(text: str) -> None:
    """The error quotes the whole list, so that its origin can be found."""
    with pytest.raises(ValueError, match="CPU list") as caught:
        parse_cpu_list(text)
    assert repr(text) in str(caught.value)


def kernel_notation(cpus: set[int]) -> str:
    """A set of processors as the kernel prints it."""
    starts = sorted(cpu for cpu in cpus if cpu - 1 not in cpus)
    ends = sorted(cpu for cpu in cpus if cpu + 1 not in cpus)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)) + "\n"


@given(st.sets(st.integers(0, 300)))
def test_every_set_of_processors_survives_the_round_trip(cpus: set[int]) -> None:
    """What the kernel prints for a set is read back as that set."""
    assert parse_cpu_list(kernel_notation(cpus)) == tuple(sorted(cpus))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 12), st.integers(1, 12))
def test_groups_of_a_range_follow_the_definition(first: int, length: int, used: int, group: int) -> None:
    """Of every group, counted from the start of the range, the first ones are taken."""
    used = min(used, group)
    pattern = [offset < used for offset in range(group)] * (length + 1)
    expected = tuple(first + offset for offset in range(length + 1) if pattern[offset])
    assert parse_cpu_list(f"{first}-{first + length}:{used}/{group}") == expected


@given(st.text(alphabet="0123-,:/ \n", max_size=12))
def test_any_text_is_a_list_or_a_value_error(text: str) -> None:
    """Nothing but ValueError comes out of bad text, and what comes out of good text is ascending."""
    try:
        cpus = parse_cpu_list(text)
    except ValueError:
        return
    assert cpus == tuple(sorted(set(cpus)))


@pytest.mark.parametrize("name", ["qemu", "a b", "x) R 1 1", "))", "((", "new\nline", "é"])
def test_the_start_time_is_found_whatever_the_process_is_called(tmp_path: Path, name: str) -> None:
    """A name can hold anything, closing parentheses included."""
    fields = " ".join(str(number) for number in range(4, 53))
    Tree(tmp_path).put({"proc/42/stat": f"42 ({name}) S {fields}\n"})
    assert process_start_time(42, root=tmp_path) == 22


def test_the_start_time_of_a_real_process() -> None:
    """It agrees with what psutil makes of it, within the rounding of the boot time."""
    ticks = os.sysconf("SC_CLK_TCK")
    started = psutil.boot_time() + process_start_time(os.getpid()) / ticks
    assert started == pytest.approx(psutil.Process().create_time(), abs=2)


def test_a_zombie_has_its_start_time_and_a_reaped_process_has_none() -> None:
    """Only reaping ends the identity of a process."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start_time(child.pid) >= process_start_time(os.getpid())
    child.wait()
    with pytest.raises(ProcessLookupError, match=f"proc/{child.pid}/stat"):
        process_start_time(child.pid)


@pytest.mark.parametrize("content", ["", "42 (qemu", "42 (qemu) S 1 2 3", "42 (qemu) S" + " x" * 49])
def test_a_malformed_process_record_is_a_host_error(tmp_path: Path, content: str) -> None:
    """A record without a number in field 22 identifies nothing."""
    Tree(tmp_path).put({"proc/42/stat": content})
    with pytest.raises(HostError, match="a start time in field 22"):
        process_start_time(42, root=tmp_path)


def refuse_to_run(argv: object) -> None:
    pytest.fail(f"ran {argv}")


def test_powercycle_asks_the_kernel_first(tmp_path: Path) -> None:
    """One letter goes to the trigger, nothing is run, and the descriptor is closed."""
    Tree(tmp_path).put({"proc/sysrq-trigger": ""})
    trigger = tmp_path / "proc/sysrq-trigger"
    result = powercycle(tmp_path, run=refuse_to_run)
    assert result.method is PowercycleMethod.SYSRQ
    assert trigger.read_text() == "b"
    descriptors = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert trigger not in [link.readlink() for link in descriptors if link.is_symlink()]


def test_powercycle_runs_reboot_without_a_trigger(tmp_path: Path) -> None:
    """A missing trigger is not created, the command is run once."""
    (tmp_path / "proc").mkdir()
    ran: list[object] = []
    assert powercycle(tmp_path, run=ran.append).method is PowercycleMethod.REBOOT_COMMAND
    assert ran == [("reboot", "-n", "-f")]
    assert not (tmp_path / "proc/sysrq-trigger").exists()


def test_powercycle_runs_reboot_when_the_trigger_cannot_be_written(tmp_path: Path) -> None:
    """A trigger that opens but takes nothing counts as refused."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/sysrq-trigger").symlink_to("/dev/full")
    ran: list[object] = []
    assert powercycle(tmp_path, run=ran.append).method is PowercycleMethod.REBOOT_COMMAND
    assert len(ran) == 1


def test_powercycle_tells_of_both_failures(tmp_path: Path) -> None:
    """When neither way works the error has both reasons and the host runs on."""

    def run(argv: object) -> None:
        raise FileNotFoundError(2, "No such file", "reboot")

    with pytest.raises(HostError, match=r"sysrq-trigger.*reboot -n -f: .*No such file") as caught:
        powercycle(tmp_path, run=run)
    assert caught.value.code == "powercycle-failed"


def test_a_fake_root_never_restarts_the_real_host(tmp_path: Path, mocker: MockerFixture) -> None:
    """Without a runner of its own, a fake root is refused instead of running the host's command."""
    run = mocker.patch("hvcore.linux.subprocess.run")
    with pytest.raises(HostError, match="does not reach this host's reboot command"):
        powercycle(tmp_path)
    run.assert_not_called()


def test_the_default_runner_checks_the_command_and_bounds_its_time(tmp_path: Path, mocker: MockerFixture) -> None:
    """A command that hangs or fails is noticed."""
    run = mocker.patch("hvcore.linux.subprocess.run", side_effect=subprocess.TimeoutExpired("reboot", 60))
    mocker.patch("hvcore.linux.ROOT", tmp_path)
    with pytest.raises(HostError, match="timed out after 60 seconds"):
        powercycle(tmp_path)
    assert run.call_args.kwargs["check"] is True
    assert run.call_args.kwargs["timeout"] == 60


def test_this_machine_can_be_read() -> None:
    """On a real kernel the figures agree with those psutil finds, and with one another."""
    info = read_node_info()
    assert info.memory_total == psutil.virtual_memory().total
    assert 0 < info.memory_free <= info.memory_total
    assert info.memory_used == info.memory_total - info.memory_free
    assert info.cpus_online == len(online_cpus()) == psutil.cpu_count()
    assert info.sockets <= info.cores <= info.cpus_online <= info.cpus_total
    assert {cpu for node in info.numa_nodes for cpu in node.cpus} == set(online_cpus())
    assert info.boot_id == boot_id()

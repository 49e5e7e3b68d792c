"""Which system calls sandboxed code is refused, as the filter that bubblewrap loads (`--seccomp`).

Keys, mounts, namespaces, other processes, the kernel's own machinery, and memory that no limit of a process counts. The
program is classic BPF over `struct seccomp_data` (linux/seccomp.h): number at 0, architecture at 4, arguments from 16.
"""

import platform
import struct

from nearstep.common.errors import RewardError

# Name: number on x86_64, number on aarch64 (None: it has none).
REFUSED: dict[str, tuple[int, int | None]] = {
    # the trainer's keys
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # mounts and roots
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "quotactl": (179, 60),
    "swapon": (167, 224), "swapoff": (168, 225), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262), "ustat": (136, None), "sysfs": (139, None), "uselib": (134, None),
    # namespaces; see also CLONE_NEW
    "unshare": (272, 97), "setns": (308, 268), "sethostname": (170, 161), "setdomainname": (171, 162),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "mbind": (237, 235),
    # the kernel's machinery
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "personality": (135, 92), "modify_ldt": (154, None), "ioperm": (173, None), "iopl": (172, None),
    "lookup_dcookie": (212, 18), "syslog": (103, 116), "acct": (163, 89), "reboot": (169, 142), "vhangup": (153, 58),
    "nfsservctl": (180, 42), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    # memory that outlives its mapping, so that RLIMIT_AS does not count it
    "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "vmsplice": (278, 75),
}  # fmt: skip
# From 424 on numbers are the same everywhere, and what is not named here is absent: pidfd_send_signal, pidfd_open,
# close_range, openat2, faccessat2, epoll_pwait2, futex_waitv, cachestat, fchmodat2, futex_wake, _wait, _requeue, mseal.
# Without clone3 the C library asks clone, whose flags can be seen.
FIRST_SHARED, ALLOWED_SHARED = 424, (424, 434, 436, 437, 439, 441, 449, 451, 452, 454, 455, 456, 462)
CLONE_NEW = 0x7E020000  # CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: others, such as AF_VSOCK, know no network namespace
# platform.machine(): AUDIT_ARCH (linux/audit.h), column above, clone, socket
MACHINES = {"x86_64": (0xC000003E, 0, 56, 41), "aarch64": (0xC00000B7, 1, 220, 198)}
X32 = 0x40000000  # x86_64's calls with 32-bit pointers, by other numbers

NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026  # SECCOMP_RET_…; with an error number


def call_filter(machine: str | None = None) -> bytes:
    """The filter for this machine as an array of `struct sock_filter`. Raises RewardError for one without a table."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise RewardError(
            f"system calls are filtered on {' and '.join(MACHINES)} alone, and this machine is {machine or 'unknown'}"
        )
    architecture, column, clone, socket = MACHINES[machine]
    refused = [numbers[column] for numbers in REFUSED.values()]
    program = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for number in ALLOWED_SHARED:
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    program += [(AT_LEAST, 0, 1, FIRST_SHARED), (RETURN, 0, 0, ENOSYS)]
    for refused_number in refused:
        if refused_number is not None:
            program += [(EQUAL, 0, 1, refused_number), (RETURN, 0, 0, EPERM)]
    program += [(EQUAL, 0, 4, clone), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 0, 1, CLONE_NEW)]
    program += [(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW), (EQUAL, 0, 2 + len(FAMILIES), socket)]
    program += [(LOAD, 0, 0, FIRST_ARGUMENT)]
    program += [(EQUAL, len(FAMILIES) - place, 0, family) for place, family in enumerate(FAMILIES)]
    program += [(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in program)

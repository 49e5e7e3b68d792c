"""What code of a model tries in the sandbox. A probe raises where it is refused; else it got through."""

import platform

from nearstep.rewards.sandbox.system_calls import MACHINES, REFUSED

COLUMN = MACHINES.get(platform.machine(), (0, 0))[1]
SHARED = {"clone3": 435, "io_uring_setup": 425, "fsopen": 430, "open_tree": 428, "move_mount": 429, "pidfd_getfd": 438,
          "process_madvise": 440, "memfd_secret": 447, "mount_setattr": 442}  # fmt: skip
CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), 0)

# `call` raises for the answer of the filter alone: one that the kernel finds wrong has reached it.
CALL = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *given):
    if libc.syscall(number, *given) < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        raise PermissionError("refused")
"""


def calls(name: str, *given: object) -> str:
    """A probe that makes one system call."""
    number = SHARED[name] if name in SHARED else REFUSED[name][COLUMN]
    return f"call({', '.join(map(str, (number, *given)))})"


KEY = "b'user', b'hf-token', b'x', 1, ctypes.c_int(-3)"
PROBES = {
    # files
    "reads a file of the user": "open({canary!r})",
    "lists a folder of the user": "os.listdir({folder!r})",
    "reads the users of the machine": "open('/etc/passwd')",
    "reads the environment of the trainer": "open('/proc/{pid}/environ', 'rb')",
    "reads the memory of the trainer": "open('/proc/{pid}/mem', 'rb')",
    "reads the kernel's memory": "open('/dev/mem', 'rb')",
    "opens a disk": "[open(f'/dev/{{name}}') for name in ('sda', 'vda', 'nvme0n1')]",
    "opens the terminal": "open('/dev/tty')",
    "talks to the container engine": "socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
    "writes beside the interpreter": "import json; open(json.__file__, 'a')",
    "writes into /usr": "open('/usr/canary', 'w')",
    "writes into the root": "open('/canary', 'w')",
    "writes a kernel setting": "open('/proc/sys/kernel/core_pattern', 'w')",
    "follows a link out": "os.path.lexists('/tmp/link') or os.symlink({canary!r}, '/tmp/link'); open('/tmp/link')",
    "links a file in": "os.link({canary!r}, '/tmp/hard')",
    "climbs out by ..": "open('/tmp/../..' + {canary!r})",
    "makes a device": "os.mknod('/tmp/device', 0o60666, os.makedev(8, 0))",
    "opens a file by its handle": calls("open_by_handle_at", -100, 0, 0),
    # network
    "connects to loopback": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "connects outside": "socket.create_connection(('192.0.2.1', 80), 2)",
    "resolves a name": "socket.getaddrinfo('example.com', 80)",
    "sends a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', {port}))",
    "connects to an abstract socket": "socket.socket(socket.AF_UNIX).connect({abstract!r})",
    "reaches the hypervisor (vsock)": "socket.socket(40, socket.SOCK_STREAM)",
    "listens to raw packets": "socket.socket(17, socket.SOCK_RAW)",
    "asks the kernel by netlink": "socket.socket(16, socket.SOCK_RAW)",
    "uses the kernel's ciphers": "socket.socket(38, socket.SOCK_SEQPACKET)",
    # other processes and the trainer's keys
    "signals the trainer": "os.kill({pid}, 9)",
    "sees another process": "os.kill(200, 0)",
    "traces a process": calls("ptrace", 0, 0, 0, 0),
    "reads the memory of a process": calls("process_vm_readv", 1, 0, 0, 0, 0, 0),
    "takes an open file of a process": calls("pidfd_getfd", 0, 0, 0),
    "reads the trainer's keyring": calls("keyctl", 10, "ctypes.c_int(-3)", "b'user'", "b'hf-token'", 0),
    "joins another keyring": calls("keyctl", 1, 0),
    "adds a key": calls("add_key", KEY),
    "asks for a key": calls("request_key", "b'user'", "b'hf-token'", 0, 0),
    # namespaces, mounts, rights
    "becomes root in a user namespace": calls("unshare", "0x10000000"),
    "makes a mount namespace": calls("unshare", "0x00020000"),
    "clones into a user namespace": f"call({CLONE}, 0x10000011, 0, 0, 0, 0)",
    "clones where flags are hidden": calls("clone3", 0, 0),
    "enters another namespace": calls("setns", 0, 0),
    "mounts": calls("mount", "b'none'", "b'/tmp'", "b'tmpfs'", 0, 0),
    "mounts by the newer calls": calls("fsopen", "b'tmpfs'", 0),
    "copies a mount": calls("open_tree", -100, "b'/'", 1),
    "changes a mount": calls("mount_setattr", -100, "b'/'", 0, 0, 0),
    "unmounts": calls("umount2", "b'/tmp'", 0),
    "changes the root": calls("chroot", "b'/tmp'"),
    "swaps the root": calls("pivot_root", "b'/tmp'", "b'/tmp'"),
    "becomes another user": "os.setuid(0)",
    "names the machine": "socket.sethostname('canary')",
    "raises its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    # the kernel's machinery
    "loads a BPF program": calls("bpf", 5, 0, 0),
    "counts the processor's events": calls("perf_event_open", 0, 0, -1, -1, 0),
    "handles page faults": calls("userfaultfd", 0),
    "starts io_uring": calls("io_uring_setup", 8, 0),
    "loads a kernel": calls("kexec_load", 0, 0, 0, 0),
    "loads a module": calls("init_module", 0, 0, "b''"),
    "turns the machine off": calls("reboot", 0, 0, 0, 0),
    "sets the clock": calls("settimeofday", 0, 0),
    "reads the kernel's log": calls("syslog", 3, 0, 0),
    "weakens its own address space": calls("personality", "0x0040000"),
    # memory, disk, processes
    "keeps memory in nameless files": "kept = [os.memfd_create(str(n)) for n in range(40)]",
    "keeps memory in shared segments": calls("shmget", 0, 1 << 24, "0o1600"),
    "keeps memory in message queues": calls("msgget", 0, "0o1600"),
    "keeps memory in secret": calls("memfd_secret", 0),
    "takes all memory": "x = bytearray(1 << 32)",
    "opens many files": "kept = [open('/dev/null') for _ in range(1000)]",
    "fills the disk": "f = open('/tmp/big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20))",
    "fills the disk with small files": "for n in range(64): open(f'/tmp/{{n}}', 'wb').write(bytes(1 << 20))",
    "prints without end": "for _ in range(1000): print('x' * 100_000)",
    "starts processes without end": "import time\nfor _ in range(100):\n    if os.fork() == 0: time.sleep(100)",
    "starts threads without end": "import threading, time\n"
    "for _ in range(100): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()",
}  # fmt: skip
# Those that end the process, or leave nothing for the next.
ALONE = ("opens many files", "fills the disk", "fills the disk with small files", "prints without end",
         "starts processes without end", "starts threads without end")  # fmt: skip


def one_after_another(probes: dict[str, str]) -> str:
    """A program that prints the names of those probes that were not refused."""
    return CALL + "\n".join(
        f"try: exec({code!r}, dict(globals()))\n"
        "except BaseException as error: assert not isinstance(error, SyntaxError)\n"
        f"else: print({name!r})"
        for name, code in probes.items()
    )

"""Ways out of the sandbox, each through another system call, command or resource.

Standard library only, x86-64.

``ESCAPES`` names for each the weakest level that stops it. All run in one sandboxed process, and
``f`` says of each whether the kernel obeyed. Targets are a stand-in:
``python tests/harness/escapes.py LEVEL`` starts the victims, is itself the parent of the sandboxed
processes, and prints what got through, as JSON. What would end that parent is tried only where it
is said to be stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path

from rlif_lightning.sandbox.isolation import LEVELS
from rlif_lightning.sandbox.pool import Run, Sandbox, Trial

ENTRY = """
def f(t, name):
    try: return tries[name](t) is not False
    finally: os.closerange(first[-1] + 1, 64)
"""


@dataclass(frozen=True)
class Escape:
    """Body of a function of ``t``, the target; the weakest level that stops it.

    It got through unless it raises or returns False. A number that the kernel answers is no
    verdict: 0 is the session of a process whose session leader is outside the pid namespace, and
    may be the number of a new descriptor. ``sure``: it works on every kernel where nothing stops
    it, for root and for any user.
    """

    code: str
    stopped_by: str = "seccomp"
    sure: bool = True


PRELUDE = """
import ctypes, fcntl, mmap, os, stat, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = ctypes.c_long
def call(number, *arguments):
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *given)
    if result < 0: raise OSError(ctypes.get_errno(), 'refused')
    return result
def errno_of(number, *arguments):
    try: call(number, *arguments)
    except OSError as error: return error.errno
    return 0
def pipe(): return os.pipe()[0]
def reap(pid):
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)
    return True
def own(pid):
    r, w = os.pipe()
    fcntl.fcntl(r, 8, pid); fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, 4, fcntl.fcntl(r, 3) | 0x2000)
    os.write(w, b'x')
    return True
LIB = '/usr/lib/os-release'
def is_open(fd):
    try: return bool(os.fstat(fd))
    except OSError: return False
first = [fd for fd in range(64) if is_open(fd)]
"""

THREADS = """
import threading
def f():
    found = []
    thread = threading.Thread(target=lambda: found.append(1))
    thread.start(); thread.join()
    return found
"""


def _simple(code: str) -> Escape:
    return Escape(f"return {code}")


def _unsure(code: str, stopped_by: str = "seccomp") -> Escape:
    return Escape(f"return {code}", stopped_by, sure=False)


ESCAPES = {
    # Signals and other processes.
    "fcntl F_SETOWN, F_SETSIG, O_ASYNC": _simple("own(t['victim'])"),
    "fcntl F_SETOWN_EX": _simple("fcntl.fcntl(pipe(), 15, struct.pack('ii', 1, t['victim']))"),
    "fcntl F_SETSIG": _simple("fcntl.fcntl(pipe(), 10, 9) == 0"),
    "fcntl F_SETFL with O_ASYNC": _simple("fcntl.fcntl(pipe(), 4, 0x2000) == 0"),
    "ioctl FIOASYNC": _simple("bool(fcntl.ioctl(pipe(), 0x5452, struct.pack('i', 1)))"),
    "tkill": _simple("call(200, t['victim'], 0) == 0"),
    "tgkill": _simple("call(234, t['victim'], t['victim'], 0) == 0"),
    "rt_sigqueueinfo": _simple(
        "call(129, t['victim'], 10, struct.pack('iii116x', 10, 0, -1)) == 0"
    ),
    "rt_tgsigqueueinfo": _simple(
        "call(297, t['victim'], t['victim'], 10, struct.pack('iii116x', 10, 0, -1)) == 0"
    ),
    "pidfd_open": _simple("call(434, t['victim'], 0)"),
    "pidfd_send_signal": _simple("call(424, call(434, t['victim'], 0), 0, 0, 0) == 0"),
    "pidfd_getfd": _unsure("call(438, call(434, t['victim'], 0), 0, 0)"),
    "process_vm_readv": _unsure(
        "call(310, t['victim'], struct.pack('QQ', 2**24, 8), 1, struct.pack('QQ', 0x400000, 8), 1,"
        " 0)"
    ),
    "process_madvise": _unsure("errno_of(440, call(434, t['victim'], 0), 0, 0, 20, 0) != 1"),
    "kcmp": _unsure("call(312, os.getpid(), t['victim'], 1, 0, 0) >= 0"),
    "move_pages": _unsure("call(279, t['victim'], 0, 0, 0, 0, 0) == 0"),
    "prlimit64": _simple("call(302, t['victim'], 7, struct.pack('QQ', 64, 64), 0) == 0"),
    "setpriority": _unsure("call(141, 0, t['victim'], 19) == 0"),
    "sched_setscheduler": _unsure("call(144, t['victim'], 3, struct.pack('i', 0)) == 0"),
    "sched_setaffinity": _unsure("call(203, t['victim'], 8, struct.pack('Q', 1)) == 0"),
    "ioprio_set": _unsure("call(251, 1, t['victim'], 3 << 13) == 0"),
    "getpgid of another": _simple("os.getpgid(t['victim'])"),
    "getsid of another": _simple("os.getsid(t['victim'])"),
    "sched_getaffinity of another": _simple("bool(os.sched_getaffinity(t['victim']))"),
    "clock_gettime of another's clock": _simple(
        "call(228, (~t['victim'] << 3) | 2, bytes(16)) == 0"
    ),
    "stat of /proc/N": Escape("return bool(os.stat(f\"/proc/{t['victim']}\"))", "namespaces"),
    "the parent's descriptors": _unsure(
        "os.open(f\"/proc/{t['parent']}/fd/0\", os.O_RDONLY) >= 0", "landlock"
    ),
    "the parent's command line": Escape(
        "return open(f\"/proc/{t['parent']}/cmdline\", 'rb').read(1)", "landlock"
    ),
    # Its own rights and kind.
    "capset": Escape(
        "return call(126, struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24) == 0", "rlimits"
    ),
    "prctl PR_SET_PDEATHSIG": _simple("call(157, 1, 0, 0, 0, 0) == 0"),
    "prctl PR_SET_DUMPABLE": _simple("call(157, 4, 1, 0, 0, 0) == 0"),
    "prctl PR_SET_CHILD_SUBREAPER": _simple("call(157, 36, 1, 0, 0, 0) == 0"),
    "personality": _simple("call(135, 0x40000) >= 0"),
    "arch_prctl": _unsure("call(158, 0x1021, ctypes.create_string_buffer(8)) == 0"),
    "seccomp": _simple("call(317, 2, 0, struct.pack('I', 0x7fff0000)) == 0"),
    "landlock_create_ruleset": _unsure("call(444, 0, 0, 1) > 0"),
    "clone": Escape("return reap(call(56, 17, 0, 0, 0, 0))", sure=False),
    "clone into a user namespace": _unsure("reap(call(56, 0x10000000 | 17, 0, 0, 0, 0))"),
    "clone of a thread into a user namespace": _simple(
        "errno_of(56, 0x10010900, 0, 0, 0, 0) == 22"
    ),
    "clone3": _unsure("reap(call(435, struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64))"),
    "execveat": _simple("errno_of(322, -1, b'/nowhere', 0, 0, 0) != 1"),
    "setns": _simple("errno_of(308, -1, 0) != 1"),
    "the x32 table of calls": _unsure("call(0x40000000 + 39) > 0"),
    # Memory and objects that no limit of a process counts.
    "memfd_create": _simple("os.write(call(319, b'x', 0), b'x')"),
    "memfd_secret": _unsure("call(447, 0)"),
    "shmget": _simple("call(31, call(29, 0, 4096, 0o1600), 0, 0) == 0"),
    "msgget": _simple("call(71, call(68, 0, 0o1600), 0, 0) == 0"),
    "semget": _simple("call(66, call(64, 0, 1, 0o1600), 0, 0) == 0"),
    "mq_open": Escape(
        "call(240, b'rlif-test', 0o102, 0o600, 0)\nreturn call(241, b'rlif-test') == 0", "rlimits"
    ),
    "fcntl F_SETPIPE_SZ": _simple("fcntl.fcntl(pipe(), 1031, 2**18)"),
    "mlock": Escape("return call(149, ctypes.create_string_buffer(4096), 4096) == 0", "rlimits"),
    "mmap MAP_HUGETLB": _simple(
        "libc.mmap(None, 2**21, 3, 0x40022, -1, 0) != -1 or ctypes.get_errno() != 1"
    ),
    "madvise MADV_PAGEOUT": _simple(
        "call(28, libc.mmap(None, ctypes.c_long(4096), 3, 0x22, -1, 0), 4096, 21) == 0"
    ),
    "timer_create": _simple(
        "call(222, 0, struct.pack('qii48x', 0, 0, 1), ctypes.create_string_buffer(8)) == 0"
    ),
    "add_key": _unsure("call(248, b'user', b'rlif-test', b'x', 1, -1)"),
    "keyctl": _unsure("call(250, 0, -1, 1)"),
    "userfaultfd": _unsure("call(323, 1)"),
    "perf_event_open": _unsure("errno_of(298, 0, 0, -1, -1, 0) != 1"),
    "bpf": _unsure("errno_of(321, -1, 0, 0) != 1"),
    "inotify": _simple("call(254, call(294, 0), b'/usr', 2)"),
    "fanotify_init": _unsure("call(300, 0x200, 0)"),
    "vmsplice": _simple("call(278, os.pipe()[1], struct.pack('QQ', 0, 0), 1, 0) == 0"),
    "membarrier": _unsure("call(324, 1, 0, 0) == 0"),
    "futex FUTEX_LOCK_PI": _unsure("call(202, ctypes.create_string_buffer(4), 6, 0, 0, 0, 0) == 0"),
    "fadvise64": _simple("call(221, os.open(LIB, 0), 0, 0, 4) == 0"),
    # Sockets, by family.
    "a UDP socket": _simple("call(41, 2, 2, 0)"),
    "a netlink socket": _simple("call(41, 16, 3, 0)"),
    "a socket of the kernel's ciphers": _unsure("call(41, 38, 5, 0)"),
    "a vsock socket": _unsure("call(41, 40, 1, 0)"),
    # Files: what they hold, are called, are marked with, and how many there are.
    "ioctl FS_IOC_SETFLAGS": Escape(
        "fd = os.open(t['home'], 0)\nflags = fcntl.ioctl(fd, 0x80086601, bytes(8))\n"
        "return bool(fcntl.ioctl(fd, 0x40086602, struct.pack('Q', struct.unpack('Q', flags)[0] |"
        " 0x40)))",
        sure=False,
    ),
    "ioctl FS_IOC_GETFLAGS": _unsure("bool(fcntl.ioctl(os.open(LIB, 0), 0x80086601, bytes(8)))"),
    "fcntl F_SETLK": _simple(
        "bool(fcntl.fcntl(os.open(LIB, 0), 6, struct.pack('hhqqi4x', 0, 0, 0, 0, 0)))"
    ),
    "fcntl F_OFD_SETLK": _simple(
        "bool(fcntl.fcntl(os.open(LIB, 0), 37, struct.pack('hhqqi4x', 0, 0, 0, 0, 0)))"
    ),
    "fcntl F_SETLEASE": _unsure("fcntl.fcntl(os.open(t['home'], 0), 1024, 0) == 0"),
    "fcntl F_NOTIFY": _unsure("fcntl.fcntl(os.open('/usr', 0), 1026, 2) == 0"),
    "flock": _simple("call(73, os.open(LIB, 0), 1 | 4) == 0"),
    "open with O_TRUNC": _simple("os.open(t['other'], os.O_RDONLY | os.O_TRUNC)"),
    "open with O_TMPFILE": _unsure("os.open(t['folder'], os.O_TMPFILE | os.O_RDWR)"),
    "openat2": _simple("call(437, -100, t['other'].encode(), struct.pack('QQQ', 1, 0, 0), 24)"),
    "open_tree": _unsure("call(428, -100, b'/usr', 0x80000)"),
    "name_to_handle_at": _unsure("errno_of(303, -100, b'/usr', bytes(200), bytes(4), 0) != 1"),
    "creat": _simple("call(85, (t['folder'] + '/created').encode(), 0o600)"),
    "truncate": _simple("call(76, t['other'].encode(), 1) == 0"),
    "mkdir": _simple("call(83, (t['folder'] + '/made').encode(), 0o700) == 0"),
    "mknod": _simple("call(133, (t['folder'] + '/fifo').encode(), 0o10600, 0) == 0"),
    "symlink": _simple("call(88, b'x', (t['folder'] + '/symbolic').encode()) == 0"),
    "link": _simple("call(86, t['other'].encode(), (t['folder'] + '/hard').encode()) == 0"),
    "rename": _simple("call(82, t['other'].encode(), t['other'].encode()) == 0"),
    "chmod": _simple("call(90, t['other'].encode(), 0o600) == 0"),
    "chown": _simple("call(92, t['other'].encode(), -1, -1) == 0"),
    "utimensat": _simple("call(280, -100, t['other'].encode(), 0, 0) == 0"),
    "setxattr": _unsure("call(188, t['other'].encode(), b'user.rlif', b'x', 1, 0) == 0"),
    "300 empty files": Escape("for i in range(300): open(f'n{i}', 'x').close()\nreturn True"),
    "300 empty files in /dev/shm": Escape(
        "for i in range(300): os.unlink(open(f'/dev/shm/{os.getpid()}-{i}', 'x').name)\nreturn"
        " True",
        sure=False,
    ),
    "descriptors that were left open": Escape(
        "kinds = [os.fstat(fd) for fd in first]\n"
        "return any(stat.S_ISREG(k.st_mode) and k.st_nlink or stat.S_ISSOCK(k.st_mode) for k in"
        " kinds)",
        "rlimits",
    ),
}
# Each in a process of its own: they may end it, or the parent where nothing stops them.
ALONE = {
    "fcntl F_SETOWN on the parent": Escape("return own(os.getppid())", sure=False),
    "32-bit calls by int 0x80": Escape(
        "m = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))() >"
        " 0",
        sure=False,
    ),
}
ALL = ESCAPES | ALONE


def source(escapes: dict[str, Escape]) -> str:
    """A module whose ``f(t, name)`` tries one of them."""
    parts = [PRELUDE, "tries = {}"]
    for name, escape in escapes.items():
        parts.append(
            f"def attempt(t):\n{textwrap.indent(escape.code, '    ')}\ntries[{name!r}] = attempt"
        )
    return "\n".join([*parts, ENTRY])


def promised(level: str, name: str) -> bool:
    """Whether a level is said to stop an escape."""
    return LEVELS.index(level) >= LEVELS.index(ALL[name].stopped_by)


def attempt_all(level: str, folder: Path) -> dict[str, list[str]]:
    """Try every escape at a level: what got ``through``, was left in ``changed`` files, ``killed``
    or ``scored``.
    """
    for name in ("home", "other"):
        (folder / name).write_text("secret")
    before = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    victim = subprocess.Popen(["sleep", "600"], **quiet)
    target = {name: str(folder / name) for name in ("home", "other")}
    target |= {"folder": str(folder), "victim": victim.pid, "parent": os.getpid()}
    sandbox = Sandbox(level, memory_mb=256, wall_seconds=60, call_seconds=30)
    # Where nothing stops it, the first of them ends the victim, so it comes last.
    names = [*list(ESCAPES)[1:], next(iter(ESCAPES))]
    over = threading.Event()
    for _ in range(20):  # a trainer has threads, and limits on tasks count all of a user
        threading.Thread(target=over.wait, daemon=True).start()
    alone = [name for name in ALONE if promised(level, name)]
    runs = [Run(source(ESCAPES), "f", tuple((target, name) for name in names))]
    runs += [Run(source({name: ALONE[name]}), "f", ((target, name),)) for name in alone]
    outcomes = [outcome for row in sandbox.outcomes(runs) for outcome in row]
    tried = dict(zip([*names, *alone], outcomes, strict=True))
    loop = f"for name in {names!r}:\n    try: f({target!r}, name)\n    except Exception: pass\n"
    tests = ("assert f(1) == 2",)
    cheat, honest = sandbox.verdicts(
        [
            Trial(f"{source(ESCAPES)}\n{loop}", "", tests, ("f",)),
            Trial("def f(x): return x + 1", "", tests, ("f",)),
        ]
    )
    [[threads]] = sandbox.outcomes([Run(THREADS, "f", ((),))])
    over.set()
    victim.terminate()  # of two signals the first decides, though the victim may die later
    killed = victim.wait() != -signal.SIGTERM
    after = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    return {
        "through": [
            name for name, outcome in tried.items() if outcome.kind == "value" and outcome.value
        ],
        "refused": ["threads"] * (threads.value != [1]),
        "unanswered": [name for name in names if tried[name].kind == "none"],
        "changed": sorted(
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        ),
        "killed": ["victim"] * killed,
        "scored": ["escapes"] * any(cheat.passed) + ["nothing"] * (not all(honest.passed)),
    }


if __name__ == "__main__":
    base = Path.home() if os.access(Path.home(), os.W_OK) else Path.cwd()
    with tempfile.TemporaryDirectory(dir=base, prefix=".rlif-test-") as made:
        print(json.dumps(attempt_all(sys.argv[1], Path(made))))

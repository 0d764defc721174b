"""The system calls that computing needs; the kernel refuses all others (seccomp, Linux).

Refused are, among others: sockets, new processes, running programs, signals to others, tracing,
mounting, namespaces, io_uring, keyrings, and every call that makes or changes a file. Threads are
allowed, and a signal of a process to itself. Where an argument selects what a call does, as in
``fcntl`` and ``ioctl``, the harmless commands are listed by number too: a command can send signals
(``F_SETOWN``), lock files that others need, or change their attributes.

Source: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html and the kernel's
tables of numbers.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

# name: numbers on x86-64 and on aarch64; None where the architecture has no such call.
_ALLOWED = """
read 0 63|write 1 64|open 2 -|close 3 57|stat 4 -|fstat 5 80|lstat 6 -|poll 7 -|lseek 8 62
mmap 9 222|mprotect 10 226
munmap 11 215|brk 12 214|rt_sigaction 13 134|rt_sigprocmask 14 135|rt_sigreturn 15 139|ioctl 16 29
pread64 17 67
pwrite64 18 68|readv 19 65|writev 20 66|access 21 -|pipe 22 -|select 23 -|sched_yield 24 124
mremap 25 216
madvise 28 233|dup 32 23|dup2 33 -|pause 34 -|nanosleep 35 101|getitimer 36 102|alarm 37 -
setitimer 38 103
getpid 39 172|clone 56 220|exit 60 93|uname 63 160|fcntl 72 25|fsync 74 82|fdatasync 75 83
getdents 78 -|getcwd 79 17
chdir 80 49|fchdir 81 50|readlink 89 -|umask 95 166|gettimeofday 96 169|getrlimit 97 163
getrusage 98 165
sysinfo 99 179|times 100 153|getuid 102 174|getgid 104 176|geteuid 107 175|getegid 108 177
getppid 110 173
getpgrp 111 -|getgroups 115 158|getresuid 118 148|getresgid 120 150|getpgid 121 155|getsid 124 156
rt_sigpending 127 136
rt_sigtimedwait 128 137|rt_sigsuspend 130 133|sigaltstack 131 132|statfs 137 43|fstatfs 138 44
gettid 186 178|time 201 -|futex 202 98|sched_getaffinity 204 123|getdents64 217 61
restart_syscall 219 128|clock_gettime 228 113|clock_getres 229 114|clock_nanosleep 230 115
exit_group 231 94|epoll_wait 232 -|epoll_ctl 233 21|tgkill 234 131|openat 257 56|newfstatat 262 79
readlinkat 267 78
faccessat 269 48|pselect6 270 72|ppoll 271 73|set_robust_list 273 99|epoll_pwait 281 22
eventfd2 290 19
epoll_create1 291 20|dup3 292 24|pipe2 293 59|preadv 295 69|pwritev 296 70|getcpu 309 168
getrandom 318 278
statx 332 291|rseq 334 293|faccessat2 439 439|ftruncate 77 46
"""
# Column of the table, AUDIT_ARCH_...
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
_CLONE3 = 435
_ALL = 0xFFFFFFFF
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SET_FLAGS, _ASYNC = 4, 0x2000  # F_SETFL; with O_ASYNC a pipe sends signals
# Conditions on arguments. One of a call's lines must hold; a line is checks of (argument, bits of
# it that count, values that these may have). The kernel reads only the lower half of each of these
# arguments.
_COMMANDS: dict[str, list[list[tuple[int, int, tuple[int, ...]]]]] = {
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
    "fcntl": [[(1, _ALL, (0, 1, 2, 3, 1030))], [(1, _ALL, (_SET_FLAGS,)), (2, _ASYNC, (0,))]],
    # TCGETS (isatty), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": [[(1, _ALL, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451))]],
    # The flags of pthread_create in glibc and in musl, and no other thread or process.
    "clone": [[(0, _ALL, (0x3D0F00, 0x7D0F00))]],
    # WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET; 0x180 are PRIVATE and
    # CLOCK_REALTIME.
    "futex": [[(1, _ALL & ~0x180, (0, 1, 3, 4, 5, 9, 10))]],
    # NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, GUARD_INSTALL,
    # GUARD_REMOVE
    "madvise": [[(2, _ALL, (0, 1, 2, 3, 4, 8, 14, 15, 102, 103))]],
    "mmap": [[(3, 0x2000 | 0x40000, (0,))]],  # neither MAP_LOCKED nor MAP_HUGETLB
    "open": [[(1, _WRITE_FLAGS, (0,))]],
    "openat": [[(2, _WRITE_FLAGS, (0,))]],
}
# The clocks of the system and of the caller; a negative number is the clock of another process.
_CLOCKS = (0, 1, 2, 3, 4, 5, 6, 7, 11)
# Calls on a process by its number: only the caller's own, or 0, which means the same. With other
# numbers these calls could find other processes.
_OWN_OR_ZERO = ("getpgid", "getsid", "sched_getaffinity")
# Instructions of the filter's machine: load a word, keep some bits of it, jump if equal, return.
_LOAD, _AND, _JEQ, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # errno EPERM, ENOSYS
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def supported() -> bool:
    """Return whether there is a table for this machine.

    Whether the kernel takes the filter shows when it is applied.
    """
    return sys.platform == "linux" and os.uname().machine in _MACHINES and sys.byteorder == "little"


def refuse_system_calls() -> None:
    """Refuse every system call that is not on the list, from here on and for good.

    Raises:
        OSError: the kernel does not take the filter.
    """
    code = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in _filter(os.uname().machine, os.getpid())
    )
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp: prctl failed")


def _numbers(column: int) -> dict[str, int]:
    calls = [entry.split() for line in _ALLOWED.strip().splitlines() for entry in line.split("|")]
    return {call[0]: int(call[column]) for call in calls if call[column] != "-"}


def _filter(machine: str, process: int) -> list[tuple[int, int, int, int]]:
    column, architecture = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, 4),
        (_JEQ, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),
    ]
    # clone3 has its flags behind a pointer, which a filter cannot read. The C library uses clone
    # where clone3 does not exist.
    code += [(_JEQ, 0, 1, _CLONE3), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    commands = _COMMANDS | {name: [[(0, _ALL, (0, process))]] for name in _OWN_OR_ZERO}
    commands |= {
        name: [[(0, _ALL, _CLOCKS)]]
        for name in ("clock_gettime", "clock_getres", "clock_nanosleep")
    }
    commands["tgkill"] = [[(0, _ALL, (process,))]]
    for name, number in _numbers(column).items():
        verdict = [(_RETURN, 0, 0, _ALLOW)]
        if name in commands:
            verdict = [instruction for line in commands[name] for instruction in _if_all(line)]
            verdict.append((_RETURN, 0, 0, _REFUSE))
        code += [(_JEQ, 0, len(verdict), number), *verdict]
    return [*code, (_RETURN, 0, 0, _REFUSE)]


def _if_all(checks: list[tuple[int, int, tuple[int, ...]]]) -> list[tuple[int, int, int, int]]:
    """Allow the call if each check holds; else continue behind what is returned here."""
    code = [(_RETURN, 0, 0, _ALLOW)]
    for argument, bits, values in reversed(checks):
        compared = [(_JEQ, len(values) - n, 0, value) for n, value in enumerate(values[:-1], 1)]
        compared.append((_JEQ, 0, len(code), values[-1]))
        code = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, bits), *compared, *code]
    return code

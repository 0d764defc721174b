"""A list of the system calls that computing needs; the kernel refuses all others (seccomp filter, Linux).

Among the refused: sockets, new processes, running programs, signals to others, tracing, mounting, namespaces, io_uring,
keyrings. Threads are allowed, and a signal of a process to itself. Writing to files is a switch of its own, for levels
that have no file system to give away.

Source: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html and the kernel's tables of numbers.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

# name: numbers on x86-64 and on aarch64; None where the architecture has no such call.
_ALLOWED = """
read 0 63|write 1 64|open 2 -|close 3 57|stat 4 -|fstat 5 80|lstat 6 -|poll 7 -|lseek 8 62|mmap 9 222|mprotect 10 226
munmap 11 215|brk 12 214|rt_sigaction 13 134|rt_sigprocmask 14 135|rt_sigreturn 15 139|ioctl 16 29|pread64 17 67
pwrite64 18 68|readv 19 65|writev 20 66|access 21 -|pipe 22 -|select 23 -|sched_yield 24 124|mremap 25 216
madvise 28 233|dup 32 23|dup2 33 -|pause 34 -|nanosleep 35 101|getitimer 36 102|alarm 37 -|setitimer 38 103
getpid 39 172|clone 56 220|exit 60 93|uname 63 160|fcntl 72 25|fsync 74 82|fdatasync 75 83|getdents 78 -|getcwd 79 17
chdir 80 49|fchdir 81 50|readlink 89 -|umask 95 166|gettimeofday 96 169|getrlimit 97 163|getrusage 98 165
sysinfo 99 179|times 100 153|getuid 102 174|getgid 104 176|geteuid 107 175|getegid 108 177|getppid 110 173
getpgrp 111 -|getgroups 115 158|getresuid 118 148|getresgid 120 150|getpgid 121 155|getsid 124 156|rt_sigpending 127 136
rt_sigtimedwait 128 137|rt_sigsuspend 130 133|sigaltstack 131 132|statfs 137 43|fstatfs 138 44|arch_prctl 158 -
gettid 186 178|time 201 -|futex 202 98|sched_getaffinity 204 123|getdents64 217 61|set_tid_address 218 96
restart_syscall 219 128|fadvise64 221 223|clock_gettime 228 113|clock_getres 229 114|clock_nanosleep 230 115
exit_group 231 94|epoll_wait 232 -|epoll_ctl 233 21|tgkill 234 131|openat 257 56|newfstatat 262 79|readlinkat 267 78
faccessat 269 48|pselect6 270 72|ppoll 271 73|set_robust_list 273 99|epoll_pwait 281 22|eventfd2 290 19
epoll_create1 291 20|dup3 292 24|pipe2 293 59|preadv 295 69|pwritev 296 70|getcpu 309 168|getrandom 318 278
membarrier 324 283|statx 332 291|rseq 334 293|faccessat2 439 439|ftruncate 77 46
"""
_WRITING = """
truncate 76 45|rename 82 -|mkdir 83 -|rmdir 84 -|creat 85 -|link 86 -|unlink 87 -|symlink 88 -|chmod 90 -|fchmod 91 52
mkdirat 258 34|unlinkat 263 35|renameat 264 38|linkat 265 37|symlinkat 266 36|fchmodat 268 53|utimensat 280 88
fallocate 285 47|renameat2 316 276
"""
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column of the table, AUDIT_ARCH_...
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Instructions of the filter's machine: load a word, jump if equal, jump if any bit is set, return.
_LOAD, _JEQ, _JSET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # errno EPERM, ENOSYS
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def supported() -> bool:
    """Whether there is a table for this machine; whether the kernel takes the filter shows when it is applied."""
    return sys.platform == "linux" and os.uname().machine in _MACHINES and sys.byteorder == "little"


def refuse_system_calls(writes: bool) -> None:
    """Refuse, from here on and for good, what is not on the list.

    Args:
        writes: whether files may be created and changed.

    Raises:
        OSError: the kernel does not take the filter.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _filter(writes))
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp: prctl failed")


def _numbers(table: str, column: int) -> dict[str, int]:
    calls = [entry.split() for line in table.strip().splitlines() for entry in line.split("|")]
    return {call[0]: int(call[column]) for call in calls if call[column] != "-"}


def _filter(writes: bool) -> list[tuple[int, int, int, int]]:
    column, machine = _MACHINES[os.uname().machine]
    calls = _numbers(_ALLOWED, column) | (_numbers(_WRITING, column) if writes else {})
    code = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, machine), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, 0)]
    # clone3 hides its flags behind a pointer; the C library falls back to clone where it does not exist.
    code += [(_JEQ, 0, 1, _CLONE3), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    code += _if_bits(calls.pop("clone"), 0, _CLONE_THREAD, _ALLOW, _REFUSE)
    code += [
        (_JEQ, 0, 4, calls.pop("tgkill")),
        (_LOAD, 0, 0, 16),
        (_JEQ, 0, 1, os.getpid()),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    if not writes:
        for name, argument in (("open", 1), ("openat", 2)):
            if name in calls:
                code += _if_bits(calls.pop(name), argument, _WRITE_FLAGS, _REFUSE, _ALLOW)
    for number in calls.values():
        code += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    return [*code, (_RETURN, 0, 0, _REFUSE)]


def _if_bits(number: int, argument: int, bits: int, yes: int, no: int) -> list[tuple[int, int, int, int]]:
    """For one call: one verdict where its argument has any of the bits, another where it has none."""
    return [
        (_JEQ, 0, 4, number),
        (_LOAD, 0, 0, 16 + 8 * argument),
        (_JSET, 0, 1, bits),
        (_RETURN, 0, 0, yes),
        (_RETURN, 0, 0, no),
    ]

"""The filter of system calls, run by an interpreter of its instructions: both architectures,
numbers, commands.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlif_lightning.sandbox.isolation import LEVELS, problem
from rlif_lightning.sandbox.pool import Run, Sandbox
from rlif_lightning.sandbox.seccomp import _filter

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
X86_64, AARCH64, I386, ARM = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028
OWN = 4321
FILTERS = {X86_64: _filter("x86_64", OWN), AARCH64: _filter("aarch64", OWN)}


def verdict(architecture: int, number: int, *arguments: int, told: int | None = None) -> int:
    """What the kernel does with a call: struct seccomp_data is number, architecture, pointer, six
    arguments.
    """
    given = [*arguments, *[0] * (6 - len(arguments))]
    words = [number, told or architecture, 0, 0]
    words += [half for value in given for half in (value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)]
    code, at, accumulator = FILTERS[architecture], 0, 0
    while True:
        operation, true, false, constant = code[at]
        at += 1
        if operation == 0x20:
            accumulator = words[constant // 4]
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x15:
            at += true if accumulator == constant else false
        else:
            assert operation == 0x06
            return constant


# Numbers on x86-64 and aarch64 by hand from the kernel's tables (asm/unistd_64.h,
# asm-generic/unistd.h).
DANGEROUS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "ptrace": (101, 117),
    "prctl": (157, 167),
    "arch_prctl": (158, None),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "setresuid": (117, 147),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "shmget": (29, 194),
    "memfd_create": (319, 279),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "openat2": (437, 437),
    "seccomp": (317, 277),
    "membarrier": (324, 283),
    "fadvise64": (221, 223),
    "flock": (73, 32),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "truncate": (76, 45),
    "fchmod": (91, 52),
    "fallocate": (285, 47),
    "utimensat": (280, 88),
    "timer_create": (222, 107),
    "mlock": (149, 228),
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_calls_are_refused(name):
    for architecture, number in zip((X86_64, AARCH64), DANGEROUS[name], strict=True):
        if number is not None:
            assert verdict(architecture, number) == EPERM
            assert verdict(architecture, number, *[2**64 - 1] * 6) == EPERM


def test_calls_of_another_kind_of_program_are_refused():
    for number in range(1024):
        assert verdict(X86_64, number, told=I386) == EPERM
        assert verdict(AARCH64, number, told=ARM) == EPERM
        assert (
            verdict(X86_64, 0x40000000 + number) == EPERM
        )  # x32: the same architecture, other numbers
        assert verdict(X86_64, 0x80000000 + number) == EPERM
    assert (
        verdict(X86_64, 0) == verdict(AARCH64, 63) == ALLOW
    )  # read, so that the loop above can fail


def test_how_many_calls_are_allowed():
    """Whoever adds a call says so here, and looks for commands in its arguments first."""
    allowed = {a: [n for n in range(1024) if verdict(a, n, OWN, 1, 4) == ALLOW] for a in FILTERS}
    unconditional = {
        a: [n for n in allowed[a] if verdict(a, n, *[2**63 + 0x7F7F7F7F] * 6) == ALLOW]
        for a in FILTERS
    }
    assert {a: len(numbers) for a, numbers in unconditional.items()} == {X86_64: 87, AARCH64: 73}
    assert (
        verdict(X86_64, 435) == verdict(AARCH64, 435) == ENOSYS
    )  # clone3: the C library falls back to clone


WORDS = st.integers(0, 2**32 - 1)
F_SETOWN, F_SETFL, O_ASYNC, O_NONBLOCK = 8, 4, 0x2000, 0x800


@given(WORDS, WORDS, st.integers(0, 2**32 - 1))
@example(F_SETOWN, 0, 0)
@example(F_SETFL, O_ASYNC, 0)
@example(F_SETFL, O_NONBLOCK, 0)
@example(1030, O_ASYNC, 7)
def test_commands_by_number(command, value, upper):
    """Also what the kernel cuts off, the upper half of these arguments, changes nothing."""
    wide = command + (upper << 32)
    for architecture, fcntl, ioctl in ((X86_64, 72, 16), (AARCH64, 25, 29)):
        harmless = command in (0, 1, 2, 3, 1030) or (command == 4 and not value & O_ASYNC)
        assert verdict(architecture, fcntl, 3, wide, value) == (ALLOW if harmless else EPERM)
        harmless = command in (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
        assert verdict(architecture, ioctl, 3, wide, value) == (ALLOW if harmless else EPERM)


@given(WORDS)
@example(0x3D0F00)
@example(0x7D0F00)
@example(0x3D0F00 | 0x10000000)
@example(17)
@example(2**32 - 16)
@example(11)
def test_arguments_by_value(word):
    expected = {
        "clone": ((56, 220), 0, word in (0x3D0F00, 0x7D0F00)),
        "mmap": ((9, 222), 3, not word & (0x2000 | 0x40000)),
        "openat": ((257, 56), 2, not word & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND)),
        "futex": ((202, 98), 1, (word & ~0x180) in (0, 1, 3, 4, 5, 9, 10)),
        "madvise": ((28, 233), 2, word in (0, 1, 2, 3, 4, 8, 14, 15, 102, 103)),
        "tgkill": ((234, 131), 0, word == OWN),
        "clock_gettime": ((228, 113), 0, word in (0, 1, 2, 3, 4, 5, 6, 7, 11)),
        "clock_getres": ((229, 114), 0, word in (0, 1, 2, 3, 4, 5, 6, 7, 11)),
        "clock_nanosleep": ((230, 115), 0, word in (0, 1, 2, 3, 4, 5, 6, 7, 11)),
        "getsid": ((124, 156), 0, word in (0, OWN)),
        "sched_getaffinity": ((204, 123), 0, word in (0, OWN)),
    }
    for numbers, place, harmless in expected.values():
        for architecture, number in zip((X86_64, AARCH64), numbers, strict=True):
            arguments = [0] * place + [word]
            assert verdict(architecture, number, *arguments) == (ALLOW if harmless else EPERM)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([0, 2**31, OWN, *range(64)]), st.sampled_from([0, 1, 2, 14, 128, 0x3D0F00]))
def test_every_jump_ends(first, second):
    for architecture in FILTERS:
        for number in range(512):
            assert verdict(architecture, number, first, second, first, second) in (
                ALLOW,
                EPERM,
                ENOSYS,
            )


COMMANDS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
r, w = os.pipe()
spare = ctypes.create_string_buffer(256)
def f(name, first, last):
    # A descriptor that is not open: what the filter lets through, the kernel refuses as EBADF.
    ends = []
    for command in range(first, last):
        assert getattr(libc, name)(999, ctypes.c_ulong(command), spare) == -1
        if ctypes.get_errno() != 1: ends.append(command)
    return ends
"""


@pytest.mark.parametrize("level", LEVELS[1:])
def test_the_kernel_agrees(level):
    if problem(level):
        pytest.skip(problem(level))
    given = (
        ("fcntl", 0, 2048),
        ("ioctl", 0x5400, 0x5500),
        ("ioctl", 0x6600, 0x6700),
        ("ioctl", 0x8900, 0x8A00),
    )
    [found] = Sandbox(level).outcomes([Run(COMMANDS, "f", given)])
    # The buffer's address is the argument of F_SETFL; it may have the bit of O_ASYNC.
    assert [[c for c in row.value if c != F_SETFL] for row in found] == [
        [0, 1, 2, 3, 1030],
        [0x5401, 0x541B, 0x5421, 0x5450, 0x5451],
        [],
        [],
    ]

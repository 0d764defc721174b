"""Gives up permissions for good, from inside the process that will run untrusted code.

In the order of ``lock_down``: own namespaces with a file system of little but the interpreter
(level ``namespaces``), a rule for reading files (level ``landlock``), resource limits, no
capabilities, and the system-call filter of ``seccomp.py`` (every level but ``rlimits``). Linux
only. These are plain system calls by ctypes, because the standard library of Python 3.11 has none
of them. (No pathlib: importing it takes as long as starting Python.)

Sources: man pages unshare(2), pivot_root(2), mount_setattr(2), landlock(7), capset(2),
setrlimit(2).
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import struct
from contextlib import suppress

from .seccomp import refuse_system_calls

# mnt uts ipc user pid net
_NEW_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_NOBODY = 65534
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522
# The same number on every architecture.
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_SYS_PIVOT_ROOT = 41 if os.uname().machine == "aarch64" else 155
_LANDLOCK_FILE_RIGHTS = (13, 14, 15, 15, 16)  # how many rights on files versions 1 to 5 know
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_RECURSIVE = 0x8000
# Threads and processes; the second number allows for sandboxed ones that start meanwhile.
_TASKS, _MORE_TASKS = 16, 256
_libc = ctypes.CDLL(None, use_errno=True)


def lock_down(level: str, limits: dict[str, float], readable: list[str]) -> None:
    """Give up every permission that the level allows to give up.

    Returns in the process that is locked down.

    Args:
        level: one of the names in ``isolation.py``.
        limits: ``cpu_seconds``, ``memory_mb``, ``file_mb``.
        readable: files and folders that stay readable.

    Raises:
        OSError: the kernel refuses a step; the level does not work here.
    """
    _die_with_parent()
    # Namespaces have their own count of tasks. Elsewhere the limit counts all tasks of this user,
    # the trainer's as well.
    tasks = _tasks_of_user() + _MORE_TASKS if level in ("seccomp", "landlock") else _TASKS
    if level == "namespaces":
        _enter_namespaces(readable)
    if level == "landlock":
        _confine_reading(readable)
    _limit_resources(limits, tasks)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    _drop_capabilities()
    if level != "rlimits":
        refuse_system_calls()


def _check(result: int, step: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{step}: {os.strerror(error)}")
    return result


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")


def _enter_namespaces(readable: list[str]) -> None:
    """Continue as process 1 of new namespaces.

    The process that was started waits for it and keeps no file open.
    """
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NEW_NAMESPACES), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {uid} 1"),
        ("gid_map", f"{_NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child:
        os.closerange(0, 65_536)  # or the other end would not see that the child has ended
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    _die_with_parent()
    _change_root(readable)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def _make_readonly(path: str, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _check(
        _libc.syscall(_SYS_MOUNT_SETATTR, -100, path.encode(), flags, attributes, len(attributes)),
        "mount_setattr",
    )


def _change_root(readable: list[str]) -> None:
    """Enter a root in memory that holds what is readable, read-only; unmount all else."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/.old")
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b"/tmp", b"/tmp/.old"), "pivot_root")
    os.chdir("/")
    for path in readable:
        _show(path)
    _check(_libc.umount2(b"/.old", _MNT_DETACH), "umount")
    os.rmdir("/.old")
    _make_readonly("/", recursive=False)


def _show(path: str) -> None:
    """Bind a file or folder of the old root at its own path, read-only.

    A symbolic link is made again.
    """
    old = f"/.old{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), path)
        return
    if os.path.isdir(old):
        os.mkdir(path)
    else:
        os.mknod(path)
    _mount(old, path, None, _MS_BIND | _MS_REC)
    _make_readonly(path, recursive=True)


def _confine_reading(readable: list[str]) -> None:
    """Allow reading below ``readable`` alone, and no writing (Landlock).

    From version 4 (Linux 6.7) TCP is denied as well; from version 6 (Linux 6.12) signals and
    abstract sockets to the outside are. The filter of system calls refuses all of this too.
    Landlock holds where the filter has a hole.
    """
    read = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
    files_only = read & ~(1 << 3)
    version = _check(_libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "landlock")
    files = (1 << _LANDLOCK_FILE_RIGHTS[min(version, 5) - 1]) - 1
    handled = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = ctypes.c_size_t(len(handled))
    ruleset = _check(_libc.syscall(_SYS_LANDLOCK_CREATE, handled, size, 0), "landlock")
    for path in readable:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", read if os.path.isdir(path) else files_only, opened)
        _check(_libc.syscall(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock {path}")
        os.close(opened)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)


def _tasks_of_user() -> int:
    """Count the visible threads of all processes of this user."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended since
            task = os.stat(f"/proc/{name}/task")
            found += task.st_nlink - 2 if task.st_uid == os.geteuid() else 0
    return found


def _limit_resources(limits: dict[str, float], tasks: int) -> None:
    megabyte = 2**20
    hard = {
        resource.RLIMIT_CPU: math.ceil(limits["cpu_seconds"]),
        resource.RLIMIT_AS: int(limits["memory_mb"] * megabyte),
        resource.RLIMIT_FSIZE: int(limits["file_mb"] * megabyte),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        # Both use kernel memory, which no limit above counts.
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NPROC: tasks,  # without a filter, this also stops most new processes
    }
    for kind, value in hard.items():
        _, given = resource.getrlimit(kind)
        value = value if given == resource.RLIM_INFINITY else min(value, given)
        resource.setrlimit(kind, (value, value))


def _drop_capabilities() -> None:
    header, none = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _check(_libc.capset(header, none), "capset")

"""What hostile code tries, and how to see whether it got it.

Standard library only, so that any user can run it.

``ATTACKS`` names for each attack the weakest level that stops it; docs/code-rewards.md prints that
table, and a test compares the two. Each attack is the source of a function ``f`` of a dictionary,
the target; it returns something true where it believes it succeeded, and ``attempt`` looks for
itself where the target can be looked at.

``python tests/harness/attacks.py LEVEL`` prints a line per attack that got through.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rlif_lightning.sandbox.isolation import LEVELS
from rlif_lightning.sandbox.pool import Run, Sandbox

SECRET = "do-not-tell"


@dataclass(frozen=True)
class Attack:
    """Source of ``f``, the weakest level that stops it, and whether trying it on a weaker level
    does no harm.
    """

    code: str
    stopped_by: str
    harmless: bool = True


ATTACKS = {
    "read the home folder": Attack("def f(t): return open(t['home']).read()", "landlock"),
    "read it through a symbolic link": Attack(
        "import os\ndef f(t):\n os.symlink(t['home'], 'link')\n return open('link').read()",
        "seccomp",
    ),
    "look for it below another root": Attack(
        "import os\ndef f(t): return [open(p).read() for d in os.listdir('/') if os.path.exists(p"
        " := f'/{d}' + t['home'])]",
        "landlock",
        False,
    ),
    "read the environment": Attack(
        "import os\ndef f(t): return os.environ.get('RLIF_TEST_SECRET')", "rlimits"
    ),
    "list processes": Attack(
        "import os\ndef f(t): return [p for p in os.listdir('/proc') if p == str(t['victim'])]",
        "landlock",
    ),
    "find a process by its number": Attack(
        "import os\ndef f(t): return bool(os.stat(f\"/proc/{t['victim']}\"))", "namespaces"
    ),
    "make many files": Attack(
        "def f(t):\n for i in range(300): open(f'{i}', 'x').close()\n return True", "seccomp"
    ),
    "own a pipe in the trainer's name": Attack(
        "import fcntl, os\ndef f(t):\n r, w = os.pipe()\n fcntl.fcntl(r, 8, os.getppid())\n"
        " fcntl.fcntl(r, 10, 9)\n"
        " fcntl.fcntl(r, 4, 0x2000)\n return bool(os.write(w, b'x'))",
        "seccomp",
        False,
    ),
    "read the trainer's environment": Attack(
        "def f(t): return b'RLIF_TEST_SECRET' in open(f\"/proc/{t['parent']}/environ\","
        " 'rb').read()",
        "landlock",
        False,
    ),
    "read the trainer's memory": Attack(
        "def f(t): return bool(open(f\"/proc/{t['parent']}/mem\", 'rb'))", "landlock", False
    ),
    "trace the trainer": Attack(
        "import ctypes, os\nlibc = ctypes.CDLL(None)\ndef f(t): return libc.ptrace(0x4206,"
        " t['parent'], 0, 0) == 0",
        "seccomp",
        False,
    ),
    "connect to the network": Attack(
        "import socket\ndef f(t): return bool(socket.create_connection(('127.0.0.1', t['port']),"
        " 2))",
        "seccomp",
    ),
    "open a Unix socket": Attack(
        "import socket\ndef f(t): return bool(socket.socketpair())", "seccomp"
    ),
    "signal another process": Attack("import os\ndef f(t): os.kill(t['victim'], 9)", "seccomp"),
    "write outside": Attack("def f(t): open(t['outside'], 'w').write('x')", "seccomp"),
    "delete files": Attack("import os\ndef f(t): os.remove(t['home'])", "seccomp"),
    "fill the disk": Attack(
        "def f(t):\n n = 0\n try:\n  for i in range(8):\n   n += open(f'{i}',"
        " 'wb').write(bytes(900_000))\n"
        " except OSError: pass\n return n > 2_500_000",
        "seccomp",
    ),
    "fill memory": Attack("def f(t):\n x = bytearray(300_000_000)\n return len(x)", "rlimits"),
    "write a huge file": Attack(
        "def f(t): return open('x', 'wb').write(bytes(40_000_000)) > 2**24", "rlimits"
    ),
    "raise its limits": Attack(
        "import resource\ndef f(t):\n resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n return"
        " True",
        "rlimits",
    ),
    "start a process": Attack(
        "import os\ndef f(t):\n if os.fork() == 0: os._exit(0)\n return True", "seccomp", False
    ),
    "start a program": Attack(
        "import subprocess\ndef f(t): return subprocess.run(['/usr/bin/env']).returncode == 0",
        "seccomp",
        False,
    ),
    "leave a daemon behind": Attack(
        "import os, time\ndef f(t):\n if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:"
        " time.sleep(3)\n  os._exit(0)\n"
        " return True",
        "seccomp",
        False,
    ),
    "a fork bomb": Attack(
        "import os\ndef f(t):\n while True:\n  os.fork()\n  n = 1", "seccomp", False
    ),
    "enter new namespaces": Attack(
        "import ctypes\ndef f(t): return ctypes.CDLL(None).unshare(0x10000000) == 0",
        "seccomp",
        False,
    ),
    "delete its own program": Attack(
        "import os, sys\ndef f(t):\n os.remove(sys.modules['sandbox'].__file__)\n return True",
        "seccomp",
        False,
    ),
    "open itself with io_uring": Attack(
        "import ctypes\ndef f(t): return ctypes.CDLL(None).syscall(425, 4, bytes(120)) >= 0",
        "seccomp",
        False,
    ),
}


def attempt(level: str, name: str, folder: Path) -> bool:
    """Let code try one attack at one level; whether it got through. ``folder`` stands for the home
    folder.
    """
    home, outside = folder / "secret", folder / "outside"
    home.write_text(SECRET)
    outside.unlink(missing_ok=True)
    victim = subprocess.Popen(["sleep", "600"])
    sandbox = Sandbox(level, memory_mb=200, wall_seconds=60, call_seconds=30)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = {
            "home": str(home),
            "outside": str(outside),
            "victim": victim.pid,
            "parent": os.getpid(),
            "port": listener.getsockname()[1],
        }
        [[outcome]] = sandbox.outcomes([Run(ATTACKS[name].code, "f", ((target,),))])
        listener.settimeout(0)
        try:
            listener.accept()[0].close()
            reached = True
        except BlockingIOError:
            reached = False
    alive = outlived(victim)
    untouched = home.exists() and home.read_text() == SECRET and not outside.exists()
    return (
        reached or not alive or not untouched or (outcome.kind == "value" and bool(outcome.value))
    )


def outlived(victim: subprocess.Popen[bytes]) -> bool:
    """End a process; whether nothing else did. Of two signals, the first decides its exit code,
    though a busy machine may let it die later.
    """
    victim.terminate()
    return victim.wait() == -signal.SIGTERM


def promised(level: str, name: str) -> bool:
    """Whether a level is said to stop an attack."""
    return LEVELS.index(level) >= LEVELS.index(ATTACKS[name].stopped_by)


if __name__ == "__main__":
    os.environ["RLIF_TEST_SECRET"] = SECRET
    home_folder = Path.home() if os.access(Path.home(), os.W_OK) else Path.cwd()
    with tempfile.TemporaryDirectory(dir=home_folder) as made:
        for attack in ATTACKS:
            if (promised(sys.argv[1], attack) or ATTACKS[attack].harmless) and attempt(
                sys.argv[1], attack, Path(made)
            ):
                print(attack)

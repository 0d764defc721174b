"""The process that runs a model's code: it answers calls with values, input with output.

Nothing here is a defence. The code that is run shares this interpreter and may change all of it.
What leaves the process is a claim about values; the reader checks and judges it.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import json
import os
import sys
import types
from contextlib import suppress
from typing import Any

from .literals import NotLiteral, decode, encode

FILE = "<candidate>"  # what tracebacks call the code


def serve(reader: int, writer: int, files: tuple[int, int], output_limit: int) -> None:
    """Answer requests until the other end closes.

    Args:
        reader: file descriptor that requests come from, the first being the code.
        writer: file descriptor that answers go to.
        files: two open, empty files for the input and output of programs.
        output_limit: most bytes of a program's output; a longer one is not sent.
    """
    # Python's own start-up defines them, but for ``-S``.
    builtins.exit = builtins.quit = sys.exit  # pyright: ignore[reportAttributeAccessIssue]
    with os.fdopen(reader, "rb") as requests:
        job = json.loads(requests.readline())
        module = types.ModuleType("candidate")
        _answer(writer, {"error": ""} if job["program"] else load(job["code"], module))
        for line in requests:
            request = json.loads(line)
            if job["program"]:
                answer = _run_program(job["code"], request["stdin"], files, output_limit)
            else:
                answer = answer_call(module, request)
            _answer(writer, {**answer, "number": request["number"]})


def _answer(writer: int, message: dict[str, Any]) -> None:
    line = memoryview(json.dumps(message).encode() + b"\n")
    while line:
        line = line[os.write(writer, line) :]


def load(code: str, module: types.ModuleType) -> dict[str, Any]:
    """Run the code in the module; return the exception that it raised, or an empty name."""
    sys.modules["candidate"] = module  # dataclasses look up their module
    try:
        exec(compile(code, FILE, "exec"), module.__dict__)
    except BaseException as error:
        return _failure(error)
    return {"error": ""}


def _failure(error: BaseException) -> dict[str, Any]:
    """Return an exception's built-in name, and the line of the code that raised it; 0 = unknown."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno or 0
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILE:
        line = error.lineno or 0
    return {"error": _name(error), "line": line}


def _name(error: BaseException) -> str:
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


def _find(module: types.ModuleType, name: str) -> Any:
    """Find a function of that name; else a method of a class ``Solution``, as LeetCode asks for."""
    if hasattr(module, name) or not hasattr(module, "Solution"):
        return getattr(module, name)
    return getattr(module.Solution(), name)


def answer_call(module: types.ModuleType, request: dict[str, Any]) -> dict[str, Any]:
    """Return what a call of a function of the code gave: a value, or an error."""
    try:
        arguments, keywords = decode(request["arguments"]), decode(request["keywords"])
        return {"value": encode(_find(module, request["name"])(*arguments, **keywords))}
    except NotLiteral:
        return {"error": "NotLiteral"}
    except BaseException as error:
        return _failure(error)


def _run_program(
    code: str, stdin: str, files: tuple[int, int], output_limit: int
) -> dict[str, Any]:
    """Run the code as a program, with files as standard input and output.

    Code may use them in every way, also by file descriptor.
    """
    entered, printed = files
    for descriptor, content in ((entered, stdin.encode()), (printed, b"")):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
    os.dup2(entered, 0)
    os.dup2(printed, 1)
    # Under both names: a program that wraps their buffers must not close them.
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    failure = _run_to_its_end(code)
    if os.fstat(printed).st_size > output_limit:
        return {"error": "OutputTooLong"}
    output = os.pread(printed, output_limit, 0).decode(errors="replace")
    return failure or {"value": output}


def _run_to_its_end(code: str) -> dict[str, Any] | None:
    """Run the code as ``__main__``, and do what Python does when a program ends.

    That is to wait for threads, to call what ``atexit`` was given, and to write what is buffered.
    What the program leaves is dropped: it may own files by the numbers 0 and 1.
    """
    sys.modules["__main__"] = types.ModuleType("__main__")
    failure = None
    try:
        exec(compile(code, FILE, "exec"), sys.modules["__main__"].__dict__)
    except SystemExit:
        pass
    except BaseException as raised:
        failure = _failure(raised)
    sys.modules.pop("__main__", None)
    gc.collect()
    if (threads := sys.modules.get("threading")) is not None:
        own = threads.current_thread()
        for each in [it for it in threads.enumerate() if it is not own and not it.daemon]:
            each.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(Exception):  # the program has closed it, or has put something else there
            stream.flush()  # pyright: ignore[reportOptionalMemberAccess]
    gc.collect()
    return failure

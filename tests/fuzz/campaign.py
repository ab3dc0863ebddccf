# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the cases of the fuzz campaign, each in a process that may hang, eat memory or die, and counts how they end.

A case is a small dataclass whose `repr` says all that it takes to repeat it. `Campaign.run` takes the known cases,
then those that hypothesis draws, by a fixed seed. Nothing is drawn smaller afterwards: cases are single changes.
"""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy
from transformers.utils import logging


# right: it loads, with the true values. refused: one sentence that names the file. The others are faults.
FAULTS = ("wrong", "traceback", "unnamed", "hang", "memory", "died")
VERDICTS = ("right", "refused", *FAULTS)
SEED = int(os.environ.get("EUPE_FUZZ_SEED", "0"))
LONG_SECONDS = float(os.environ.get("EUPE_FUZZ_SECONDS", "600"))  # of the long form, all kinds together
# Of drawn cases in the long form, so that it is the same on fast machines; with a time of your own there is no limit.
LONG_ROUNDS = 1_000_000 if "EUPE_FUZZ_SECONDS" in os.environ else 40
# Of the time of the long form, by kind.
SHARES = {"checkpoints": 0.3, "pictures": 0.2, "data": 0.2, "adapters": 0.15, "cache": 0.05, "machines": 0.1}
_CASE_SECONDS = 30.0  # more is a hang, on a machine that has other things to do as well
_MEMORY = 3 << 30  # bytes that a case may take beside what the process had
_CASES = 400  # of one process
_SENTENCE = 1500  # characters of a message: some list what a model has
# The two forms of each test: some examples of each kind; ten minutes of all kinds together on two cores.
FORMS = pytest.mark.parametrize(
    "is_long", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])], ids=["short", "long"]
)
_FORK = multiprocessing.get_context("fork")
# what nothing that is only read may do; the stand-ins for servers are on this machine
_ACTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn"}
_HERE = ("127.0.0.1", "::1", "localhost")


class WrongError(AssertionError):
    """It loaded something else than what is in the file, changed what it must not change, or ran code."""


class BadCaseError(Exception):
    """The case itself could not be made: a fault of the campaign."""


class UnmadeError(Exception):
    """What was drawn does not exist, such as a row that no file of the format can hold: it is not counted."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended, and what was told."""

    verdict: str
    told: str = ""


@dataclass
class Tally:
    """Figures of one kind of cases."""

    kind: str
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, case: Any, outcome: Outcome) -> None:
        if outcome.verdict == "unmade":
            return
        self.counts[outcome.verdict] += 1
        if outcome.verdict in FAULTS:
            self.faults.append(f"{outcome.verdict}: {case!r}\n    {outcome.told[:800]}")

    def figures(self) -> dict[str, int]:
        return {"tried": self.counts.total(), **{name: self.counts[name] for name in VERDICTS}}


# ---- in the process of the cases ----


class _Acts(list):
    """What the case did that only code would do."""

    allowed: tuple[str, ...] = ()

    def watch(self, event: str, arguments: tuple) -> None:
        if event == "socket.connect":
            address = arguments[1]
            if not isinstance(address, tuple) or address[0] in _HERE:
                return
        if event in _ACTS or (event == "open" and "canary" in str(arguments[0])):
            self.append(f"{event} {str(arguments)[:100]}")


_acts = _Acts()


@contextlib.contextmanager
def building() -> Any:
    """Around what makes a case: an error in here is the campaign's, not an answer."""
    try:
        yield
    except UnmadeError:
        raise
    except Exception as error:
        raise BadCaseError(f"{type(error).__name__}: {error}") from error
    _acts.clear()


def stderr_of(call: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a call, or the code it exits with, and all that reached stderr, from native code too."""
    sys.stderr.flush()
    saved, old = os.dup(2), sys.stderr
    with tempfile.TemporaryFile("w+b") as file:
        os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        try:
            result = call()
        except SystemExit as ended:
            result = ended.code or 0
        finally:
            sys.stderr.close()
            sys.stderr = old
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        return result, file.read().decode("utf-8", "replace")


def eupe(*arguments: str | os.PathLike) -> None:
    """Run the `eupe` command; a ValueError with its sentence if it refuses, else an error that is a fault.

    Exit code 2 and one line on stderr that begins "eupe: " is a refusal. Anything else than 0 beside it is a fault.
    """
    from eupe_hf import cli

    def command() -> None:
        sys.argv = ["eupe", *map(os.fspath, arguments)]
        cli.main()

    with Path(os.devnull).open("w", encoding="utf-8") as nothing, contextlib.redirect_stdout(nothing):
        code, told = stderr_of(command)
    if not code:
        return
    lines = told.strip().splitlines()
    if code == 2 and len(lines) == 1 and lines[0].startswith("eupe: "):
        raise ValueError(lines[0].removeprefix("eupe: "))
    raise RuntimeError(f"exit code {code} with {len(lines)} lines on stderr: {told.strip()[-700:]}")


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _judge(call: Callable[[Any], Any], case: Any, documented: tuple[type[Exception], ...]) -> Outcome:
    """Make a case and say how it ended. What a case returns are the names of which a refusal must hold one."""
    _acts.clear()
    names: list[str] = []
    try:
        call(case, names)
        outcome = Outcome("right")
    except UnmadeError as error:
        outcome = Outcome("unmade", str(error))
    except BadCaseError:
        raise
    except WrongError as error:
        outcome = Outcome("wrong", str(error))
    except documented as error:
        told = " ".join(str(error).split())
        is_clear = 0 < len(told) <= _SENTENCE and any(name in told for name in names)
        outcome = Outcome("refused" if is_clear else "unnamed", f"{type(error).__name__}: {told}")
        if any(isinstance(e, MemoryError) or "allocate memory" in str(e) for e in _chain(error)):
            outcome = Outcome("memory", told)
    except MemoryError as error:
        outcome = Outcome("memory", str(error))
    except Exception as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else ""
        outcome = Outcome("traceback", f"{type(error).__name__}: {error} ({where})")
    if _acts:
        return Outcome("wrong", f"it did {_acts[0]}")
    return outcome


def _serve(pipe: Connection, prepare: Callable[[], None], documented: tuple[type[Exception], ...]) -> None:
    os.setsid()
    torch.set_num_threads(1)  # the threads of the process that forked are not here
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.resetwarnings()  # as the command has them: a warning that a user would see counts as a line
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning, FutureWarning):
        warnings.simplefilter("ignore", hidden)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.addaudithook(_acts.watch)
    prepare()
    while True:
        try:
            call, case = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_judge(call, case, documented))
        except BadCaseError as error:
            pipe.send(error)


class Worker:
    """A process that makes cases one after another; a new one takes over where it hangs or dies.

    Args:
        prepare: Called in the process before the first case.
        documented: The classes of errors that the docstrings promise.
    """

    def __init__(
        self,
        prepare: Callable[[], None] = lambda: None,
        documented: tuple[type[Exception], ...] = (OSError, ValueError, ImportError),
    ):
        self.prepare, self.documented = prepare, documented
        self.process: Any = None
        self.pipe: Any = None
        self.made = 0

    def __call__(self, call: Callable[[Any, list[str]], None], case: Any) -> Outcome:
        if self.process is None or self.made >= _CASES:
            self.stop()
            self.pipe, theirs = _FORK.Pipe()
            self.process = _FORK.Process(target=_serve, args=(theirs, self.prepare, self.documented), daemon=False)
            self.process.start()
            theirs.close()
            self.made = 0
        self.made += 1
        self.pipe.send((call, case))
        try:
            if not self.pipe.poll(_CASE_SECONDS):
                self.stop()
                return Outcome("hang", f"no answer after {_CASE_SECONDS:g} s")
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            code = self.process.exitcode
            self.stop()
            return Outcome("died", f"exit code {code}")
        if isinstance(answer, BadCaseError):
            raise AssertionError(f"the campaign cannot make {case!r}") from answer
        return answer

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
            self.pipe.close()
        self.process = self.pipe = None


# ---- in the process of the tests ----


def run(
    kind: str,
    call: Callable[[Any, list[str]], None],
    cases: SearchStrategy,
    known: Iterable[Any],
    worker: Worker,
    examples: int,
    seconds: float | None = None,
    seed: int = SEED,
) -> Tally:
    """The known cases, then rounds of drawn ones: one round, or as many as take so many seconds."""
    tally, start = Tally(kind), time.monotonic()

    def one(case: Any) -> None:
        if seconds is None or time.monotonic() - start < seconds:
            tally.add(case, worker(call, case))

    options = hypothesis.settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    try:
        for case in known:
            tally.add(case, worker(call, case))
        for number in range(seed, seed + LONG_ROUNDS):
            options(hypothesis.seed(number)(hypothesis.given(cases)(one)))()
            if seconds is None or time.monotonic() - start >= seconds:
                break
    finally:
        worker.stop()
    tally.seconds = time.monotonic() - start
    return tally


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too, with their content; a folder by its name and a slash."""
    acts = list(_acts)
    found = {
        str(path.relative_to(folder)) + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_dir() or path.is_file()
    }
    _acts[:] = acts  # but for these
    return found


@contextlib.contextmanager
def scratch() -> Any:
    """A folder for one case."""
    folder = Path(tempfile.mkdtemp(prefix="eupe-fuzz-"))
    try:
        yield folder
    finally:
        acts = list(_acts)
        shutil.rmtree(folder, ignore_errors=True)
        _acts[:] = acts


@dataclass
class Campaign:
    """Runs a kind of cases in its short or long form, keeps its figures for the summary, and fails on faults.

    Args:
        is_long: Ten minutes of all kinds together on two cores, instead of some examples of each.
        record: Takes a name and the figures.
    """

    is_long: bool
    record: Callable[[str, Any], None]

    def __call__(
        self,
        kind: str,
        call: Callable[[Any, list[str]], None],
        cases: SearchStrategy,
        known: Iterable[Any] = (),
        examples: int = 40,
        **options: Any,
    ) -> None:
        seconds = 2 * LONG_SECONDS * SHARES[kind] if self.is_long else None
        # the short form takes other cases than the first round of the long one, and some of the known
        known = list(known)
        known = known if self.is_long else known[:: max(1, len(known) // examples)]
        tally = run(kind, call, cases, known, Worker(**options), examples, seconds, SEED + self.is_long)
        self.record("fuzz", {"kind": kind, **tally.figures()})
        assert not tally.faults, "\n".join([f"{len(tally.faults)} faults", *tally.faults[:20]])

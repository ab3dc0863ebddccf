# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Where the `eupe` command starts. It stands outside the package, whose imports take seconds.

Until they are done, Ctrl-C ends the process at once with exit code 130: an exception would come out of any of a
thousand imported files, as a traceback, or be lost in one of them. Afterwards it is an exception, so that files are
cleaned up.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def main() -> None:
    """Run the command."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so behind nohup
    if is_interruptible:
        signal.signal(signal.SIGINT, _leave)
    try:
        Path.cwd()
    except FileNotFoundError:  # the imports need one, and relative paths would mean nothing
        if sys.stderr is not None:  # it is where stderr is closed
            sys.stderr.write("eupe: The working directory no longer exists: change to another one.\n")
        sys.exit(2)
    from eupe_hf.cli import main as run

    try:
        if is_interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # before or after typer, which handles it otherwise
        sys.exit(130)
    finally:
        if is_interruptible:
            signal.signal(signal.SIGINT, _leave)


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


if __name__ == "__main__":
    main()

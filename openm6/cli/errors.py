"""Reports a user's mistake as one sentence with exit code 2, without a traceback. Finished work stays."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import ParamSpec

import typer

P = ParamSpec("P")
LAST_CHECKPOINT = "its last checkpoint, if it has written one"
USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # the last two as a shell reports SIGINT and SIGPIPE


def cleanly(verb: Callable[P, None], *, goes_on_from: str | None = None) -> Callable[P, None]:
    """Wraps `verb`: a user's mistake (`ValueError`, or a file that cannot be used) prints one sentence.

    `goes_on_from`: the place where the same command continues after Ctrl+C; None = it starts again.

    Errors that no user can cause are mistakes in the code, so they still show their traceback.
    """

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # `openm6 ... | head`: nobody listens any more
            _drop_output()
            raise typer.Exit(BROKEN_PIPE) from None
        except ValueError as error:
            _say(str(error))
            raise typer.Exit(USAGE) from None
        except OSError as error:
            if error.strerror is None:  # not from the operating system
                raise
            if error.filename is None:
                _drop_output()  # standard output may be on the full disk
            _say(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            _say("stopped" + (f"; the same command goes on from {goes_on_from}" if goes_on_from else ""))
            raise typer.Exit(INTERRUPTED) from None

    return run


def _drop_output() -> None:
    """Discard standard output. Python flushes it once more at exit, and after a failure that flush would fail
    again.
    """
    with suppress(io.UnsupportedOperation):  # where standard output is no file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str) -> None:
    print(f"openm6: {' '.join(sentence.split())}", file=sys.stderr)

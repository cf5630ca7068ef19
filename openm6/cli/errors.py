"""Bad input gets one clear sentence and exit code 2, never a traceback; what was already done stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

P = ParamSpec("P")
USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # the last two as a shell reports SIGINT and SIGPIPE


def cleanly(verb: Callable[P, None]) -> Callable[P, None]:
    """`verb`, with a user's mistake (`ValueError`, or a file that cannot be used) told in one sentence.

    Errors that no user can cause still show their traceback: they are ours to mend.
    """

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # `openm6 ... | head`: nobody listens any more
            # Python flushes once more at exit, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except ValueError as error:
            _say(str(error))
            raise typer.Exit(USAGE) from None
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            about = f"{error.filename}: " if error.filename is not None else ""
            _say(f"{about}{error.strerror}")
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            _say("stopped; a training run goes on from its last checkpoint by the same command")
            raise typer.Exit(INTERRUPTED) from None

    return run


def _say(sentence: str) -> None:
    print(f"openm6: {' '.join(sentence.split())}", file=sys.stderr)

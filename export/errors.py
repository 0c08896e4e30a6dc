"""Errors that are the user's to mend: one line, and the exit code."""

import io
import os
import select
import sys
from collections.abc import Callable


class ExportError(Exception):
    """Something failed; the message says what was found, what was expected and what to do."""

    exit_code = 1


class UsageError(ExportError):
    """The command or its files do not fit each other."""

    exit_code = 2


def one_line(error: object) -> str:
    """The text of a library's error, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Runs a command line's `main` and ends the process: an `ExportError` is one line, not a traceback.

    What standard output's encoding does not have is escaped. A reader who leaves early is no failure: what is
    printed there comes after the work.
    """
    escape_output()
    try:
        main()
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        if not _is_unread():
            raise
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _finish_output()


def escape_output() -> None:
    """Escapes what standard output's encoding does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Sends what is left for standard output nowhere: else Python would fail once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread() -> bool:
    """Whether standard output is a pipe that nobody reads; another pipe may have broken instead."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _finish_output() -> None:
    try:
        print(end="", flush=True)
    except OSError as error:
        discard_output()
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            sys.exit(1)

"""Errors that are the user's to mend: one line, and the exit code."""

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
    """Runs a command line's `main` and ends the process: an `ExportError` is one line, not a traceback."""
    try:
        main()
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)

"""The command line: from words to an exit status. Decides nothing that `config`, `importer` and `supervisor` know."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from . import __version__, directory, exits, importer, log
from .config import options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status, here and in each worker."""
    _fill_standard_streams()
    try:
        arguments = options.parse_arguments(sys.argv[1:] if argv is None else argv)
        if arguments.action == "--help":
            return _show(options.help_text())
        if arguments.action == "--version":
            return _show(f"epollard {__version__}\n")
        loaded = options.load(arguments.given, os.environ)
    except options.ConfigError as error:
        print(f"epollard: {error}", file=sys.stderr)
        return exits.BAD_CONFIGURATION
    if arguments.action == "--print-config":
        return _show(options.show(loaded))
    try:
        start = directory.current()
        os.chdir(loaded.config.chdir)
    except OSError as error:
        print(f"epollard: the current directory cannot be entered: {error.strerror}", file=sys.stderr)
        return exits.BAD_CONFIGURATION
    log.configure(loaded.config.log_level, "supervisor")
    if arguments.action == "--check":
        status = _check(loaded.config)
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            # Of the application's import: the interpreter would wait for them.
            sys.stdout.flush()
            os._exit(status)
        return status
    return _serve(loaded.config, partial(_reread, arguments, start), start)


def _show(text: str) -> int:
    """Print it whole, or say in one line why not. A reader that has seen enough, such as head(1), knows why."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"epollard: standard output: {error.strerror}", file=sys.stderr)
        # The interpreter will try once more to write what it still has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.FAILED
    return exits.OK


def _fill_standard_streams() -> None:
    """Where descriptors 0 to 2 were closed, what is opened next would be one of them, and get what is written to the log."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _check(settings: options.Config) -> int:
    kind: str = "wsgi" if settings.interface == "auto" else settings.interface
    if settings.app is not None:
        try:
            found = importer.load(settings.app)
        except importer.ApplicationError as error:
            print(f"epollard: {error}", file=sys.stderr)
            return exits.LOAD_FAILED
        if settings.interface == "auto":
            kind = importer.interface(found)
    print(f"ok: {settings.app or 'the built-in demo'} ({kind.upper()})")
    return exits.OK


def _reread(arguments: options.Arguments, start: str) -> options.Config:
    """The configuration as it is now: the file is looked for where it was at the start. `ConfigError`."""
    try:
        with directory.entered(start):
            return options.load(arguments.given, os.environ).config
    except OSError as error:
        raise options.ConfigError(f"{start!r} cannot be entered again: {error.strerror}") from None


def _serve(settings: options.Config, reread: Callable[[], options.Config], start: str) -> int:
    from .supervisor import Supervisor  # here, so that --help need not wait for what it does not use

    # The supervisor forks inside: this returns once with the exit status, and once in each child with its worker.
    result = Supervisor(settings, reread, start).run()
    return result if isinstance(result, int) else result.run()

"""The command line: from words to an exit status. It decides nothing that `config`, `importer` and `supervisor` know."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from . import __version__, directory, exits, importer, log
from .config import sources, text
from .config.options import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status, here and in each worker."""
    _fill_standard_streams()
    try:
        arguments = sources.parse_arguments(sys.argv[1:] if argv is None else argv)
        if arguments.action == "--help":
            return _print(text.help_text())
        if arguments.action == "--version":
            return _print(f"epollard {__version__}\n")
        loaded = sources.load(arguments.given, os.environ)
    except sources.ConfigError as error:
        print(f"epollard: {error}", file=sys.stderr)
        return exits.BAD_CONFIGURATION
    if arguments.action == "--print-config":
        return _print(text.config_text(loaded))
    try:
        start = directory.current()
        os.chdir(loaded.config.chdir)
    except OSError as error:
        print(f"epollard: the current directory cannot be entered: {error.strerror}", file=sys.stderr)
        return exits.BAD_CONFIGURATION
    log.configure(loaded.config.log_level, "supervisor")
    if arguments.action == "--check":
        return _check_and_leave(loaded.config)
    return _serve(loaded.config, partial(_reread, arguments, start), start)


def _print(output: str) -> int:
    """Print all of `output`, or say in one line why not. If the reader has closed the pipe, as head(1) does, say nothing."""
    try:
        print(output, end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"epollard: standard output: {error.strerror}", file=sys.stderr)
        # At its end the interpreter tries once more to write what it still has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.FAILED
    return exits.OK


def _fill_standard_streams() -> None:
    """Open those of the descriptors 0 to 2 that are closed, or the next file opened would take their place and get the log."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _check_and_leave(config: Config) -> int:
    """Check the application. If its import has left threads that the interpreter would wait for, exit from here."""
    status = _check(config)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        os._exit(status)
    return status


def _check(config: Config) -> int:
    interface: str = "wsgi" if config.interface == "auto" else config.interface
    if config.app is not None:
        try:
            application = importer.load(config.app)
        except importer.ApplicationError as error:
            print(f"epollard: {error}", file=sys.stderr)
            return exits.LOAD_FAILED
        if config.interface == "auto":
            interface = importer.interface(application)
    print(f"ok: {config.app or 'the built-in demo'} ({interface.upper()})")
    return exits.OK


def _reread(arguments: sources.Arguments, start: str) -> Config:
    """The configuration as it is now. The file is looked for in the directory of the start. Raises `ConfigError`."""
    try:
        with directory.entered(start):
            return sources.load(arguments.given, os.environ).config
    except OSError as error:
        raise sources.ConfigError(f"{start!r} cannot be entered again: {error.strerror}") from None


def _serve(config: Config, reread: Callable[[], Config], start: str) -> int:
    from .supervisor import Supervisor  # here, so that --help does not wait for an import that it does not need

    # `run` forks, so it returns in each process: its exit status in the supervisor, and in each child the worker to run.
    result = Supervisor(config, reread, start).run()
    return result if isinstance(result, int) else result.run()

"""From `module:attribute` to the application object. A failure of the application's own code is never hidden.

There are two kinds of failure, distinguished by where they arise. A name that does not exist is a typing error on the command
line: the message is one line, which suggests a name that exists. An exception raised in the application's code is its own: the
message ends with its traceback, which begins with the first frame of its code.
"""

import difflib
import functools
import inspect
import os
import pkgutil
import select
import sys
import traceback
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType, TracebackType
from typing import Any, Final

# The names tried for `module` alone, in this order. WSGI servers agree on the second, the tutorials of frameworks on the first.
DEFAULT_NAMES: Final = ("app", "application")

_TAKES_VARARGS: Final = 0x04  # code.co_flags, see `inspect`
_MAX_LISTED: Final = 8  # names shown if none is similar


class ApplicationError(Exception):
    """The application could not be loaded. The message is one line, then the traceback if the application's code raised."""


def load(spec: str) -> Callable[..., Any]:
    """The application that `MODULE`, `MODULE:ATTRIBUTE` or `MODULE:FACTORY()` names; attributes may be dotted.

    Makes the current directory importable. Raises `ApplicationError` if there is no such object, if it is not callable, and
    if importing or making it raises anything, `sys.exit()` included, except `KeyboardInterrupt`.
    """
    module_name, _, name = spec.partition(":")
    try:
        directory = os.getcwd()  # not "", which would follow a later chdir() of the application
    except OSError as error:
        raise ApplicationError(f"{spec}: the current directory is gone: {error.strerror}") from None
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    module = _import(spec, module_name)
    if not hasattr(select, "epoll"):
        raise ApplicationError(
            f"{spec}: importing it has removed select.epoll, as gevent and eventlet do; the server cannot work without it"
        )
    name = name or _default_name(module)
    called = f"'{module_name}:{name}()'"
    found = _attribute(spec, module, name.removesuffix("()"))
    if not callable(found):
        raise ApplicationError(f"{spec}: {name} is {_article(found)}, which is not callable")
    if name.endswith("()"):
        found = _make(spec, found)
        if not callable(found):
            raise ApplicationError(f"{spec}: {name} returned {_article(found)}, which is not callable")
    elif isinstance(found, FunctionType) and not (found.__code__.co_argcount or found.__code__.co_flags & _TAKES_VARARGS):
        # It would load, but then every request would fail.
        raise ApplicationError(f"{spec}: {name} takes no arguments; did you mean the application it returns, {called}?")
    elif inspect.isclass(found) and not _callable_as_application(found):
        raise ApplicationError(f"{spec}: {name} is a class with other arguments; did you mean an instance, {called}?")
    application: Callable[..., Any] = found
    return application


def interface(application: Callable[..., Any]) -> str:
    """Detect the interface of an application, `wsgi` or `asgi`, from its signature; it is not called.

    Asynchronous functions and objects are ASGI, and so are classes whose instances can be awaited, and callables that take the
    three arguments of ASGI but not the two of WSGI. Wrappers (`functools.partial`, `functools.wraps`) are looked through.
    """
    found: Any = application
    while isinstance(found, functools.partial):
        found = found.func
    if inspect.isclass(found):
        return "asgi" if hasattr(found, "__await__") else "wsgi"
    called = found if inspect.isroutine(found) else found.__call__
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(inspect.unwrap(called)):
        return "asgi"
    try:
        signature = inspect.signature(application if application is not found else called)
    except (TypeError, ValueError):
        return "wsgi"
    return "asgi" if _takes(signature, 3) and not _takes(signature, 2) else "wsgi"


def _callable_as_application(found: type) -> bool:
    """Whether a class can be called like an application, with two arguments or three."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return True
    return _takes(signature, 2) or _takes(signature, 3)


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _import(spec: str, name: str) -> ModuleType:
    try:
        # Not importlib.import_module(): Python omits the frames of the import system only for this function.
        __import__(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and not _foreign(error.__traceback__):
            raise ApplicationError(f"{spec}: {_missing(error.name, str(error))}") from None
        raise _failure(f"{spec}: importing {name} failed", error) from None
    return sys.modules[name]


def _attribute(spec: str, module: ModuleType, path: str) -> object:
    found: object = module
    owner = f"module '{module.__name__}'"
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, AttributeError) and not _foreign(error.__traceback__):
                raise ApplicationError(f"{spec}: {owner} has no attribute '{name}'{_instead(name, found)}") from None
            raise _failure(f"{spec}: reading '{name}' of {owner} failed", error) from None
        owner = f"'{name}'"
    return found


def _default_name(module: ModuleType) -> str:
    for name in DEFAULT_NAMES:
        if name in vars(module):
            return name
    tried = " nor ".join(f"'{name}'" for name in DEFAULT_NAMES)
    raise ApplicationError(f"{module.__name__}: the module has neither {tried}{_listed(module)}; write {module.__name__}:NAME")


def _make(spec: str, factory: Callable[[], object]) -> object:
    try:
        return factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _failure(f"{spec}: the factory failed", error) from None


def _failure(line: str, error: BaseException) -> ApplicationError:
    """The error that consists of `line` and the traceback of `error`, without our own frames."""
    frames = _foreign(error.__traceback__)
    report = traceback.TracebackException(type(error), error, frames)
    # Without a frame (a syntax error, a factory that requires arguments), "Traceback:" would be a heading of nothing.
    text = "".join(report.format() if frames else report.format_exception_only())
    return ApplicationError(f"{line}\n{text.rstrip()}")


def _foreign(frames: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from the first frame on that is neither ours nor the import system's."""
    while frames and frames.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib.")):
        frames = frames.tb_next
    return frames


def _missing(name: str, message: str) -> str:
    """The message for a module that does not exist; `message` is Python's own."""
    parent, _, last = name.rpartition(".")
    if not parent:
        close = _close(last, (found.name for found in pkgutil.iter_modules([os.getcwd()])))
        return f"no module named '{name}' in {os.getcwd()} or elsewhere on the path" + close
    package = sys.modules.get(parent)
    if package is None:
        return message
    if not hasattr(package, "__path__"):  # `hello.py`, or `hello.app` for `hello:app`
        guess = f"{parent}:{last}" if last in vars(package) else parent
        return f"{message}; did you mean '{guess}'?"
    return message + _close(last, (found.name for found in pkgutil.iter_modules(package.__path__)), parent + ".")


def _instead(name: str, owner: object) -> str:
    listed = _listed(owner) if isinstance(owner, ModuleType) else ""
    return _close(name, dir(owner)) or listed


def _listed(module: ModuleType) -> str:
    """The public callables of `module`, the last first, because imported names stand at the top of a module."""
    names = [name for name, value in reversed(vars(module).items()) if name[0] != "_" and callable(value)]
    if not names:
        return "; it has no public callable"
    return f"; it has {', '.join(names[:_MAX_LISTED])}{', ...' * (len(names) > _MAX_LISTED)}"


def _close(name: str, names: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, [other for other in names if other != name], 1)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def _article(found: object) -> str:
    kind = type(found).__name__
    return "None" if found is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"

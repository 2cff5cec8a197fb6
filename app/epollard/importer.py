"""From `module:attribute` to the application object. Never hides what the application itself had to say about a failure.

Two kinds of failure are told apart by where they arose. A name that is not there is our caller's typing error: one line, with
what is there instead. An exception out of the application's code is the application's own: its traceback, from its first frame
on, is the last thing in the message.
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

# What `module` alone stands for, in this order; WSGI servers agree on the second, frameworks' tutorials on the first.
DEFAULT_NAMES: Final = ("app", "application")

_TAKES_VARARGS: Final = 0x04  # code.co_flags, see `inspect`
_SHOWN: Final = 8  # names listed where none is close


class ApplicationError(Exception):
    """The application could not be loaded. As text: one line that says why, then its own traceback if its code had raised."""


def load(spec: str) -> Callable[..., Any]:
    """The application that `MODULE`, `MODULE:ATTRIBUTE` or `MODULE:FACTORY()` names; attributes may be dotted.

    The current directory is importable from here on. `ApplicationError` where there is no such thing, where it is not
    callable, and where importing or making it raises anything (`sys.exit()` included) but `KeyboardInterrupt`.
    """
    module_name, _, name = spec.partition(":")
    try:
        directory = os.getcwd()  # not "", which would go along with a later chdir() of the application
    except OSError as error:
        raise ApplicationError(f"{spec}: the current directory is gone: {error.strerror}") from None
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    module = _import(spec, module_name)
    if not hasattr(select, "epoll"):
        raise ApplicationError(
            f"{spec}: it has taken select.epoll away, as gevent and eventlet do: it cannot be served with that"
        )
    name = name or _default_name(module)
    made = f"'{module_name}:{name}()'"
    found = _attribute(spec, module, name.removesuffix("()"))
    if not callable(found):
        raise ApplicationError(f"{spec}: {name} is {_article(found)}, which is not callable")
    if name.endswith("()"):
        found = _make(spec, found)
        if not callable(found):
            raise ApplicationError(f"{spec}: {name} returned {_article(found)}, which is not callable")
    elif isinstance(found, FunctionType) and not (found.__code__.co_argcount or found.__code__.co_flags & _TAKES_VARARGS):
        # It would load, and then fail every request.
        raise ApplicationError(f"{spec}: {name} takes no arguments; did you mean the application it returns, {made}?")
    elif inspect.isclass(found) and not _makes_answers(found):
        raise ApplicationError(f"{spec}: {name} is a class of other arguments; did you mean its instance, {made}?")
    application: Callable[..., Any] = found
    return application


def interface(application: Callable[..., Any]) -> str:
    """`wsgi` or `asgi`: what kind of application that is, by how it can be called.

    Asynchronous functions and objects are ASGI, as are classes whose instances can be awaited, and whatever takes the three
    arguments of ASGI and not the two of WSGI; wrappers (`functools.partial`, `functools.wraps`) are looked into.
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


def _makes_answers(found: type) -> bool:
    """Whether a class may be called as an application is: with two arguments or three."""
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
        # Not importlib.import_module(): for the statement's own function Python leaves the import system's frames out.
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
    """`line`, and the traceback of `error` as if our frames had never been."""
    frames = _foreign(error.__traceback__)
    told = traceback.TracebackException(type(error), error, frames)
    # Without a frame (a syntax error, a factory that wants arguments) there is nothing for a "Traceback:" to head.
    text = "".join(told.format() if frames else told.format_exception_only())
    return ApplicationError(f"{line}\n{text.rstrip()}")


def _foreign(frames: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins with the first frame that is neither ours nor the import system's."""
    while frames and frames.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib.")):
        frames = frames.tb_next
    return frames


def _missing(name: str, told: str) -> str:
    """What to say of a module that is not there; `told` is Python's own sentence."""
    parent, _, last = name.rpartition(".")
    if not parent:
        close = _close(last, (found.name for found in pkgutil.iter_modules([os.getcwd()])))
        return f"no module named '{name}' in {os.getcwd()} or elsewhere on the path" + close
    package = sys.modules.get(parent)
    if package is None:
        return told
    if not hasattr(package, "__path__"):  # `hello.py`, or `hello.app` for `hello:app`
        return f"{told}; did you mean '{parent}:{last}'?" if last in vars(package) else f"{told}; did you mean '{parent}'?"
    return told + _close(last, (found.name for found in pkgutil.iter_modules(package.__path__)), parent + ".")


def _instead(name: str, owner: object) -> str:
    listed = _listed(owner) if isinstance(owner, ModuleType) else ""
    return _close(name, dir(owner)) or listed


def _listed(module: ModuleType) -> str:
    """The public things in `module` that can be called, the last first: what was imported stands at its top."""
    names = [name for name, value in reversed(vars(module).items()) if name[0] != "_" and callable(value)]
    return f"; it has {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}" if names else "; it has nothing to call"


def _close(name: str, names: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, [other for other in names if other != name], 1)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def _article(found: object) -> str:
    kind = type(found).__name__
    return "None" if found is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"

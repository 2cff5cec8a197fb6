"""Modules in a directory and the result of loading them, or the message; and the interfaces of all kinds of applications."""

import functools
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from epollard import importer

FILES = {
    "hello.py": """
        import json
        from functools import partial
        def app(environ, start_response): return [b"hello"]
        def application(environ, start_response): return [b"not me"]
        def create_app(): return app
        def create_nothing(): pass
        def create_with(name): return app
        def make_broken(): return helper()
        def helper(): raise RuntimeError("no database")
        def any_arguments(*arguments): return [b"any"]
        class Holder:
            wsgi = staticmethod(app)
            @property
            def broken(self): raise AttributeError("inner")
            def make(self): return app
        holder = Holder()
        number = 3
    """,
    "second.py": "application = print",
    "neither.py": "from os import getcwd\ndef main(): pass",
    "empty.py": "",
    "patched.py": "import select\ndel select.epoll\napp = print",
    "factory.py": "def app(): pass",
    "raises.py": "def inner():\n    1 / 0\ninner()",
    "leaves.py": "import sys\nsys.exit('bye')",
    "imports_missing.py": "import not_there_at_all",
    "imports_name.py": "from json import not_there",
    "chained.py": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise RuntimeError('settings') from error",
    "syntax.py": "def app(:\n    pass",
    "lazy.py": "def __getattr__(name):\n    if name == 'app': return print\n    raise KeyError(name)",
    "my-app.py": "app = print",
    "package/__init__.py": "",
    "package/wsgi.py": "application = print",
    "package/broken.py": "import package.not_there",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = text.strip("\n").split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines))
    (tmp_path / "dangling.py").symlink_to("nothing")
    (tmp_path / "unreadable.py").symlink_to("/proc/self/mem")  # even to root, at offset 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(select, "epoll", select.epoll)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


LOADED = [
    ("hello:app", "hello", "app"),
    ("hello", "hello", "app"),
    ("hello:create_app()", "hello", "app"),
    ("hello:Holder.wsgi", "hello", "app"),
    ("hello:holder.wsgi", "hello", "app"),
    ("hello:holder.make()", "hello", "app"),
    ("hello:any_arguments", "hello", "any_arguments"),
    ("second", "second", "application"),
    ("package.wsgi:application", "package.wsgi", "application"),
    ("package.wsgi", "package.wsgi", "application"),
    ("my-app:app", "my-app", "app"),
]


@pytest.mark.parametrize(("spec", "module", "name"), LOADED)
def test_the_named_application_is_loaded(spec: str, module: str, name: str):
    """An attribute, a dotted one, the result of a factory, or `app` before `application`, from the current directory."""
    assert importer.load(spec) is getattr(sys.modules[module], name)


def test_a_lazy_attribute_is_found():
    """A module's own `__getattr__` (PEP 562) is called."""
    assert importer.load("lazy:app") is print


LINES = [
    ("helo:app", "helo:app: no module named 'helo' in {here} or elsewhere on the path; did you mean 'hello'?"),
    ("dangling:app", "dangling:app: no module named 'dangling' in {here} or elsewhere on the path"),
    ("zzzzzz:app", "zzzzzz:app: no module named 'zzzzzz' in {here} or elsewhere on the path"),
    ("pakage.wsgi", "pakage.wsgi: no module named 'pakage' in {here} or elsewhere on the path; did you mean 'package'?"),
    ("package.wsg:application", "package.wsg:application: No module named 'package.wsg'; did you mean 'package.wsgi'?"),
    ("hello.py:app", "hello.py:app: No module named 'hello.py'; 'hello' is not a package; did you mean 'hello'?"),
    ("hello.app", "hello.app: No module named 'hello.app'; 'hello' is not a package; did you mean 'hello:app'?"),
    ("hello:ap", "hello:ap: module 'hello' has no attribute 'ap'; did you mean 'app'?"),
    ("hello:creat_app()", "hello:creat_app(): module 'hello' has no attribute 'creat_app'; did you mean 'create_app'?"),
    (
        "hello:zzz",
        "hello:zzz: module 'hello' has no attribute 'zzz'; it has Holder, any_arguments, helper, make_broken, create_with, "
        "create_nothing, create_app, application, ...",
    ),
    ("hello:holder.wsgy", "hello:holder.wsgy: 'holder' has no attribute 'wsgy'; did you mean 'wsgi'?"),
    ("hello:holder.zzz", "hello:holder.zzz: 'holder' has no attribute 'zzz'"),
    ("empty:app", "empty:app: module 'empty' has no attribute 'app'; it has no public callable"),
    ("patched", "patched: importing it has removed select.epoll, as gevent and eventlet do; the server cannot work without it"),
    ("neither", "neither: the module has neither 'app' nor 'application'; it has main, getcwd; write neither:NAME"),
    ("hello:number", "hello:number: number is an int, which is not callable"),
    ("hello:number()", "hello:number(): number() is an int, which is not callable"),
    ("hello:create_nothing()", "hello:create_nothing(): create_nothing() returned None, which is not callable"),
    (
        "hello:create_app",
        "hello:create_app: create_app takes no arguments; did you mean the application it returns, 'hello:create_app()'?",
    ),
    ("factory", "factory: app takes no arguments; did you mean the application it returns, 'factory:app()'?"),
    ("hello:Holder", "hello:Holder: Holder is a class with other arguments; did you mean an instance, 'hello:Holder()'?"),
]


@pytest.mark.parametrize(("spec", "line"), LINES)
def test_a_misspelled_name_is_one_line_with_a_suggestion(spec: str, line: str, tmp_path: Path):
    """A typing error gets no traceback, but the names that exist."""
    with pytest.raises(importer.ApplicationError) as caught:
        importer.load(spec)
    assert str(caught.value) == line.format(here=tmp_path)


TRACEBACKS = [
    ("raises:app", "raises:app: importing raises failed", ["raises.py", "raises.py"], "ZeroDivisionError: division by zero"),
    ("leaves:app", "leaves:app: importing leaves failed", ["leaves.py"], "SystemExit: bye"),
    (
        "imports_missing:app",
        "imports_missing:app: importing imports_missing failed",
        ["imports_missing.py"],
        "ModuleNotFoundError: No module named 'not_there_at_all'",
    ),
    (
        "package.broken:app",
        "package.broken:app: importing package.broken failed",
        ["package/broken.py"],
        "ModuleNotFoundError: No module named 'package.not_there'",
    ),
    ("chained:app", "chained:app: importing chained failed", ["chained.py", "chained.py"], "RuntimeError: settings"),
    ("unreadable:app", "unreadable:app: importing unreadable failed", [], "OSError: [Errno 5] "),
    ("syntax:app", "syntax:app: importing syntax failed", ["syntax.py"], "SyntaxError: "),
    ("hello:make_broken()", "hello:make_broken(): the factory failed", ["hello.py", "hello.py"], "RuntimeError: no database"),
    ("hello:create_with()", "hello:create_with(): the factory failed", [], "TypeError: create_with() missing 1 required "),
    ("hello:holder.broken", "hello:holder.broken: reading 'broken' of 'holder' failed", ["hello.py"], "AttributeError: inner"),
    ("lazy:other", "lazy:other: reading 'other' of module 'lazy' failed", ["lazy.py"], "KeyError: 'other'"),
]


@pytest.mark.parametrize(("spec", "first", "files", "last"), TRACEBACKS)
def test_the_applications_own_traceback_comes_last_and_without_our_frames(
    spec: str, first: str, files: list[str], last: str, tmp_path: Path
):
    """One line of ours, then exactly the frames of the application, then its error as the last line."""
    with pytest.raises(importer.ApplicationError) as caught:
        importer.load(spec)
    lines = str(caught.value).splitlines()
    assert lines[0] == first
    assert lines[-1].startswith(last)
    frames = [line.split('"')[1] for line in lines if line.startswith('  File "')]
    assert frames == [str(tmp_path / file) for file in files]


def test_an_import_error_of_a_name_is_the_applications_own():
    """A failing `from x import y` shows its traceback, because x is not the module that was named."""
    with pytest.raises(importer.ApplicationError) as caught:
        importer.load("imports_name:app")
    assert "imports_name.py" in str(caught.value)
    assert str(caught.value).splitlines()[-1].startswith("ImportError: cannot import name 'not_there'")


def test_an_interrupt_is_not_caught(tmp_path: Path):
    """Ctrl-C during a slow import is not a failure of the application."""
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        importer.load("slow:app")


def test_the_current_directory_comes_first_and_once(tmp_path: Path):
    """Modules in the current directory win over all others; loading twice does not add it twice."""
    importer.load("hello:app")
    importer.load("second")
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


# --- Interfaces ---------------------------------------------------------------------------------------------------


def wsgi(environ, start_response):
    return []


async def asgi(scope, receive, send):
    pass


async def asgi_of(name, scope, receive, send, *, option=None):
    pass


def returns_a_coroutine(scope, receive, send):
    return asgi(scope, receive, send)


def anything(*arguments, **more):
    return []


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


async def asynchronously(*arguments):
    pass


class Wsgi:
    """An instance is an application."""

    def __call__(self, environ, start_response):
        return []

    def method(self, environ, start_response):
        return []


class Asgi:
    async def __call__(self, scope, receive, send):
        pass

    async def method(self, scope, receive, send):
        pass

    @classmethod
    async def of_class(cls, scope, receive, send):
        pass

    @staticmethod
    async def static(scope, receive, send):
        pass


class SubAsgi(Asgi):
    pass


class AsgiBySignature:
    def __call__(self, scope, receive, send):
        return asgi(scope, receive, send)


class AsgiDecorated:
    @decorated
    async def __call__(self, scope, receive, send):
        pass


class AsgiBySlot:
    """A known middleware selects a version of ASGI in this way: each instance has a `__call__` of its own."""

    __slots__ = ("__call__",)

    def __init__(self):
        self.__call__ = asgi


class WsgiResponse:
    """Calling the class makes a response."""

    def __init__(self, environ, start_response):
        pass

    def __iter__(self):
        return iter(())


class AsgiResponse:
    def __init__(self, scope, receive, send):
        pass

    def __await__(self):
        return asgi({}, None, None).__await__()


class Wrapper:
    """A WSGI application around another, with one more argument that has a default."""

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response, more=None):
        return self.app(environ, start_response)


APPLICATIONS = {
    "function": (wsgi, "wsgi"),
    "async function": (asgi, "asgi"),
    "function that returns a coroutine": (returns_a_coroutine, "asgi"),
    "function of anything": (anything, "wsgi"),
    "async function of anything": (asynchronously, "asgi"),
    "lambda": (lambda e, s: [], "wsgi"),
    "builtin": (print, "wsgi"),
    "instance": (Wsgi(), "wsgi"),
    "async instance": (Asgi(), "asgi"),
    "async instance of a subclass": (SubAsgi(), "asgi"),
    "instance that returns a coroutine": (AsgiBySignature(), "asgi"),
    "instance with a decorated call": (AsgiDecorated(), "asgi"),
    "instance with a call of its own": (AsgiBySlot(), "asgi"),
    "method": (Wsgi().method, "wsgi"),
    "async method": (Asgi().method, "asgi"),
    "async class method": (Asgi.of_class, "asgi"),
    "async static method": (Asgi.static, "asgi"),
    "class": (WsgiResponse, "wsgi"),
    "class to await": (AsgiResponse, "asgi"),
    "partial": (functools.partial(wsgi), "wsgi"),
    "partial of an async function": (functools.partial(asgi_of, "name", option=1), "asgi"),
    "partial of a partial": (functools.partial(functools.partial(asgi_of, option=1), "name"), "asgi"),
    "partial of a coroutine's function": (functools.partial(returns_a_coroutine), "asgi"),
    "partial of an async instance": (functools.partial(Asgi()), "asgi"),
    "partial of a class to await": (functools.partial(AsgiResponse), "asgi"),
    "decorated": (decorated(wsgi), "wsgi"),
    "decorated async function": (decorated(asgi), "asgi"),
    "decorated twice": (decorated(decorated(asgi)), "asgi"),
    "decorated async instance": (decorated(returns_a_coroutine), "asgi"),
    "cached": (functools.lru_cache(wsgi), "wsgi"),
    "WSGI around something": (Wrapper(wsgi), "wsgi"),
}


@pytest.mark.parametrize(("application", "kind"), APPLICATIONS.values(), ids=APPLICATIONS)
def test_the_interface_is_detected(application: Callable[..., Any], kind: str):
    """The signature decides; the application is not called."""
    assert importer.interface(application) == kind


def _flask():
    return pytest.importorskip("flask").Flask("name")


def _flask_behind_a_proxy():
    return pytest.importorskip("werkzeug.middleware.proxy_fix").ProxyFix(_flask())


def _asgi_of_flask():
    return pytest.importorskip("asgiref.wsgi").WsgiToAsgi(_flask())


def _starlette():
    return pytest.importorskip("starlette.applications").Starlette()


def _starlette_behind_middleware():
    return pytest.importorskip("starlette.middleware.gzip").GZipMiddleware(_starlette())


def _starlette_endpoint():
    return pytest.importorskip("starlette.endpoints").HTTPEndpoint


def _starlette_response():
    return pytest.importorskip("starlette.responses").PlainTextResponse("an application, too")


def _fastapi():
    return pytest.importorskip("fastapi").FastAPI()


def _quart():
    return pytest.importorskip("quart").Quart("name")


def _django_wsgi():
    handler = pytest.importorskip("django.core.handlers.wsgi").WSGIHandler
    return handler.__new__(handler)  # which needs no settings, as an __init__ would


def _django_asgi():
    handler = pytest.importorskip("django.core.handlers.asgi").ASGIHandler
    return handler.__new__(handler)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        *((make, "wsgi") for make in (_flask, _flask_behind_a_proxy, _django_wsgi)),
        *((make, "asgi") for make in (_asgi_of_flask, _starlette, _starlette_behind_middleware, _starlette_endpoint)),
        *((make, "asgi") for make in (_starlette_response, _fastapi, _quart, _django_asgi)),
    ],
)
def test_applications_of_frameworks(make: Callable[[], Any], kind: str):
    """Applications of frameworks, bare and in the usual wrappers."""
    assert importer.interface(make()) == kind

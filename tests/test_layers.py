"""The shape of the project, read from its source: who imports whom, who is tested where, and what every file begins with."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "app" / "epollard"
TESTS = ROOT / "tests"
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}

# Each module and what it imports of ours. A new arrow is a decision: it is drawn here and in docs/design.md.
IMPORTS = {
    # sans-IO
    "request": set(),
    "response": set(),
    "websocket": {"request"},
    # mechanism
    "log": set(),
    "loop": set(),
    "sockets": set(),
    "scoreboard": set(),
    "steering": {"log", "sockets"},
    "doors": {"steering"},
    "cgroup": set(),
    "importer": set(),
    "accesslog": {"log", "request"},
    # one client
    "outgoing": set(),
    "connection": {"log", "loop", "outgoing", "request", "response"},
    # the application interfaces
    "uploads": {"connection", "request"},
    "environ": {"request", "uploads"},
    "wsgi": {"connection", "environ", "log", "outgoing", "request", "response", "uploads"},
    "threads": {"connection", "environ", "loop", "request", "uploads", "wsgi"},
    "scope": {"connection", "request", "websocket"},
    "asgi": {"connection", "log", "outgoing", "request", "response", "scope"},
    "session": {"asgi", "connection", "log", "outgoing", "request", "response", "scope", "websocket"},
    "lifespan": {"log"},
    "guest": {"asgi", "connection", "lifespan", "log", "loop", "request", "scope", "session", "websocket"},
    # processes
    "kinds": set(),
    "config": {"cgroup", "kinds"},
    "worker": {
        "accesslog",
        "config",
        "connection",
        "demo",
        "doors",
        "guest",
        "importer",
        "lifespan",
        "log",
        "loop",
        "request",
        "scoreboard",
        "signals",
        "threads",
    },
    "signals": {"loop"},
    "slots": {"scoreboard", "steering"},
    "balance": {"log", "loop", "slots", "sockets", "steering"},
    "listeners": {"balance", "config", "doors", "log", "loop", "slots", "sockets", "steering"},
    "upgrade": {"doors", "log", "loop", "sockets"},
    "recycling": {"config", "scoreboard", "slots"},
    "pool": {"cgroup", "config", "log", "loop", "recycling", "scoreboard", "slots", "worker"},
    # management
    "report": {"scoreboard", "slots"},
    "elastic": {"report"},
    "admin": {"log", "loop", "report", "request", "response", "sockets"},
    "management": {"admin", "config", "log", "loop", "report", "sockets"},
    "ctl": {"config"},
    "supervisor": {
        "cgroup",
        "config",
        "elastic",
        "listeners",
        "log",
        "loop",
        "management",
        "pool",
        "recycling",
        "report",
        "scoreboard",
        "signals",
        "slots",
        "sockets",
        "upgrade",
        "worker",
    },
    "cli": {"__init__", "config", "importer", "log", "supervisor"},
    "__main__": {"cli"},
    "__init__": set(),
    # an application like others
    "demo": set(),
}

# What bytes-in, facts-out needs of the standard library, and nothing else: no socket, no file, no process.
SANS_IO = {
    "request": {"collections.abc", "ipaddress", "re", "typing", "urllib.parse"},
    "response": {"collections.abc", "http", "re", "time", "typing"},
    "websocket": {
        *("binascii", "codecs", "collections.abc", "hashlib", "re", "struct", "typing", "zlib"),
        "request",  # ours
    },
}

# Modules without a test module of their own name, and where their promises are kept.
TESTED_ELSEWHERE = {
    "__init__": ["test_cli.py"],
    "__main__": ["test_cli.py", "harness.py"],
    "connection": ["server/test_http.py", "server/test_limits.py"],
    "balance": ["server/test_rescue.py", "server/test_scaling.py"],
    "management": ["server/test_admin.py"],
    "kinds": ["test_config.py"],
    "ctl": ["server/test_admin.py", "container/test_image.py"],
    "scope": ["server/test_asgi.py"],
    "session": ["server/test_websockets.py"],
    "worker": ["server/test_stop.py", "server/test_signals.py", "server/test_supervision.py"],
}
NO_MODULE = {"layers", "deployment"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, name) of what a file imports, wherever in it; names of `from . import a, b` one by one."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                yield from ((node.level, alias.name) for alias in node.names)
            else:
                yield node.level, node.module


def ours(path: Path) -> set[str]:
    return {name if name in MODULES else "__init__" for level, name in imports(path) if level}


def files(*patterns: str) -> list[Path]:
    """Python files of the project; none of a virtual environment, a build or a cache."""
    return sorted(
        path
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if not any(part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts)
    )


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_table_is_whole():
    """Every module of the package stands in the table, and nothing that is gone."""
    assert set(IMPORTS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_who_imports_whom(module: str):
    """A module imports what the table says, by relative imports, and of others the standard library only."""
    path = MODULES[module]
    assert ours(path) == IMPORTS[module]
    foreign = {name for level, name in imports(path) if not level and name.split(".")[0] not in sys.stdlib_module_names}
    assert not foreign
    assert all(level <= 1 for level, _ in imports(path))


def test_nobody_imports_in_a_circle():
    """There is an order in which each module is read after those that it imports."""
    left = dict(IMPORTS)
    while left:
        ready = [module for module, needs in left.items() if not needs & left.keys()]
        assert ready, f"a circle among {sorted(left)}"
        for module in ready:
            del left[module]


@pytest.mark.parametrize("module", SANS_IO)
def test_bytes_in_facts_out(module: str):
    """The sans-IO modules can neither reach a socket nor a file, nor ask for the time."""
    path = MODULES[module]
    assert {name for _, name in imports(path)} == SANS_IO[module]
    uses = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute | ast.Name)}
    assert not uses & {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
    assert {use for use in uses if use.startswith("time.")} <= {"time.gmtime"}


def test_no_http_below_the_connection():
    """Loop, sockets and scoreboard know no HTTP: nothing of the kind is in what they import."""
    for module in "loop", "sockets", "scoreboard":
        assert not any(name.startswith(("http", "urllib", "email")) for _, name in imports(MODULES[module]))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_tests(module: str):
    """A test module of its name, or a statement where it is tested, which is true."""
    here = [path for path in (TESTS / f"test_{module}.py", TESTS / "server" / f"test_{module}.py") if path.exists()]
    if module in TESTED_ELSEWHERE:
        assert not here
        assert all((TESTS / name).exists() for name in TESTED_ELSEWHERE[module])
    else:
        assert here


def test_every_unit_test_has_its_module():
    """A module that is gone or renamed takes its tests with it."""
    names = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    assert names - NO_MODULE <= set(MODULES)


EVERYWHERE = files("app/**/*.py", "tests/**/*.py", "loadtests/**/*.py", "docker/**/*.py", "examples/**/*.py")


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_every_file_says_what_it_is(path: Path):
    """The first statement of a file is a docstring, which begins on the first line."""
    assert path.read_text("utf-8").startswith('"""'), "no docstring on the first line"
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", files("tests/**/test_*.py"), ids=name_of)
def test_every_test_states_its_promise(path: Path):
    """A test without a docstring is not understood by who breaks it."""
    silent = [
        node.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent

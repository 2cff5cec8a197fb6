"""The shape of the project, read from its source: which folder imports which, where each module is tested, how files begin."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "app" / "epollard"
TESTS = ROOT / "tests"

# Each folder, or file at the root, and what it imports of ours. A new arrow is a decision: draw it in docs/design.md too.
IMPORTS: dict[str, set[str]] = {
    # These import nothing of ours.
    "__init__": set(),
    "log": set(),
    "exits": set(),
    "directory": set(),
    "cgroup": set(),
    "scoreboard": set(),
    "importer": set(),
    "demo": set(),
    "protocol": set(),
    # Options and the network.
    "config": {"cgroup"},
    "net": {"log", "protocol"},
    "access_log": {"log", "protocol"},
    # The application interfaces.
    "wsgi": {"log", "net", "protocol"},
    "asgi": {"log", "net", "protocol"},
    # The two kinds of process.
    "worker": {"access_log", "asgi", "config", "demo", "exits", "importer", "log", "net", "scoreboard", "wsgi"},
    "supervision": {"cgroup", "config", "directory", "exits", "log", "net", "scoreboard"},
    "management": {"config", "exits", "log", "net", "protocol", "scoreboard", "supervision"},
    "supervisor": {"cgroup", "config", "exits", "log", "management", "net", "scoreboard", "supervision", "worker"},
    # The command line.
    "cli": {"__init__", "config", "directory", "exits", "importer", "log", "supervisor"},
    "__main__": {"cli"},
}

# What protocol/ needs of the standard library, and nothing else: no socket, no file, no process.
SANS_IO = {
    *("binascii", "codecs", "collections.abc", "hashlib", "http", "ipaddress", "re", "struct", "time", "typing"),
    *("urllib.parse", "zlib"),
}

# Modules without a test module of their own name, and the tests that cover them.
TESTED_ELSEWHERE = {
    "__init__": ["test_cli.py"],
    "__main__": ["test_cli.py", "harness.py"],
    "worker": ["server/test_stop.py", "server/test_signals.py", "server/test_supervision.py"],
    "net/bpf": ["net/test_reuseport.py", "net/test_syn_filter.py"],
    "management/ctl": ["server/test_admin.py", "container/test_image.py"],
    "net/contracts": ["server/test_access_log.py"],
}
NO_MODULE = {"layers", "words", "deployment", "docs"}  # tests/test_NAME.py of something other than a module


def dotted(path: Path) -> str:
    """A module's name below the package, as in "net.loop"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent == PACKAGE or path.stem != "__init__"}
TITLES = {dotted(path): path for path in sorted(PACKAGE.glob("*/__init__.py"))}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(level, module, name) of everything that a file imports, at any place in it; the name is empty in `import module`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or "", alias.name) for alias in node.names)


def ours(module: str) -> set[str]:
    """The modules of ours that a module imports, by their dotted names."""
    found = set()
    for level, target, name in imports(MODULES[module]):
        if level:
            parts = module.split(".")[:-level] + (target.split(".") if target else [])
            whole = ".".join([*parts, name])
            found.add(whole if whole in MODULES else ".".join(parts) or "__init__")
    return found


def box(module: str) -> str:
    return module.partition(".")[0]


def assert_no_cycle(arrows: dict[str, set[str]]) -> None:
    """Check that there is an order in which each name comes after those that it imports."""
    left = dict(arrows)
    while left:
        ready = [name for name, needs in left.items() if not needs & left.keys()]
        assert ready, f"a cycle among {sorted(left)}"
        for name in ready:
            del left[name]


def files(*patterns: str) -> list[Path]:
    """Python files of the project, without virtual environments, builds and caches."""
    return sorted(
        path
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if not any(part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts)
    )


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_table_is_complete():
    """The table lists every folder and every file at the root, and nothing that no longer exists."""
    assert set(IMPORTS) == {box(module) for module in MODULES}


@pytest.mark.parametrize("name", IMPORTS)
def test_which_folder_imports_which(name: str):
    """A folder imports exactly what the table lists."""
    found = {box(target) for module in MODULES if box(module) == name for target in ours(module)}
    assert found - {name} == IMPORTS[name]


def test_no_folder_imports_upward():
    """The folders have an order: none imports one that imports it, directly or not."""
    assert_no_cycle(IMPORTS)


def test_modules_do_not_import_in_a_cycle():
    """Modules do not import each other in a cycle, not even within a folder."""
    assert_no_cycle({module: ours(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_nothing_but_the_standard_library(module: str):
    """At run time only the standard library is needed; our own modules are imported relatively."""
    foreign = {
        target
        for level, target, _ in imports(MODULES[module])
        if not level and target.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize("path", TITLES.values(), ids=TITLES)
def test_a_folder_states_its_purpose(path: Path):
    """The `__init__` of a folder is only a docstring: importing one module does not import the others."""
    assert len(tree(path).body) == 1
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("module", [module for module in MODULES if box(module) == "protocol"])
def test_protocol_is_sans_io(module: str):
    """Nothing in protocol/ can reach a socket or a file, or ask for the time."""
    path = MODULES[module]
    assert {target for level, target, _ in imports(path) if not level} <= SANS_IO
    uses = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute | ast.Name)}
    assert not uses & {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
    assert {use for use in uses if use.startswith("time.")} <= {"time.gmtime"}


def test_no_http_below_the_connection():
    """Loop, sockets and scoreboard know nothing of HTTP: they import no module that deals with it."""
    for module in "net.loop", "net.sockets", "scoreboard":
        assert not any(target.startswith(("http", "urllib", "email")) for _, target, _ in imports(MODULES[module]))


# The modules that may have a connection in their hands, without the one that defines it.
CONNECTED = [module for module in MODULES if box(module) in ("net", "wsgi", "asgi", "worker") and module != "net.connection"]


def assigned(path: Path) -> set[str]:
    """The attributes that a file assigns or deletes, as in "self.connection.due"."""
    return {
        ast.unparse(node)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
    }


@pytest.mark.parametrize("module", CONNECTED)
def test_a_connection_is_used_through_its_methods(module: str):
    """No other module assigns an attribute of a connection, so that every state of it can be found in one file."""
    assert not {target for target in assigned(MODULES[module]) if target.split(".")[-2] in ("connection", "_connection")}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_tests(module: str):
    """A module has a test module in the same place, or the table names existing tests elsewhere."""
    folder, _, name = module.replace(".", "/").rpartition("/")
    here = TESTS / folder / f"test_{name}.py"
    elsewhere = TESTED_ELSEWHERE.get(module.replace(".", "/"))
    if elsewhere is None:
        assert here.exists()
    else:
        assert not here.exists()
        assert all((TESTS / test).exists() for test in elsewhere)


def test_every_unit_test_has_its_module():
    """When a module is removed or renamed, so are its tests."""
    folders = ["", *(name.partition(".")[0] for name in TITLES)]
    names = {
        ".".join(filter(None, (folder, path.stem.removeprefix("test_"))))
        for folder in folders
        for path in (TESTS / folder).glob("test_*.py")
    }
    assert names - NO_MODULE <= set(MODULES)


EVERYWHERE = files("app/**/*.py", "tests/**/*.py", "loadtests/**/*.py", "docker/**/*.py", "examples/**/*.py")


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_every_file_begins_with_a_docstring(path: Path):
    """The first statement of a file is a docstring, which begins on the first line."""
    assert path.read_text("utf-8").startswith('"""'), "no docstring on the first line"
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", files("tests/**/test_*.py"), ids=name_of)
def test_every_test_states_its_promise(path: Path):
    """Every test has a docstring that tells the developer who breaks it what it promises."""
    silent = [
        node.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent


# Functions and files that are longer than these state the reason in their docstring, in a sentence that begins with "Long:".
LONG_FUNCTION, LONG_FILE = 40, 500
LONGEST_FUNCTION = 60  # lines, whatever the reason


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_functions_are_short(path: Path):
    """No function has more than 60 lines, and one with more than 40 states the reason."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"
            if lines > LONG_FUNCTION:
                assert "Long:" in (ast.get_docstring(node) or ""), f"{node.name} has {lines} lines and states no reason"


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_long_files_state_the_reason(path: Path):
    """A file with more than 500 lines states the reason in its docstring."""
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONG_FILE or "Long:" in (ast.get_docstring(tree(path)) or ""), f"{lines} lines"

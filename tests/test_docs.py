"""The pages of the project: links lead somewhere, prose has short lines, and what a page lists is what the code has."""

import ast
import re
import signal
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from epollard import supervisor, worker
from epollard.config import options
from epollard.management import metrics
from epollard.scoreboard import WIDTH
from epollard.supervision.status import Facts
from test_layers import IMPORTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "app" / "epollard"
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts)
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

CLASSES: dict[str, list[str]] = {}  # the files in which each is defined
for folder in ("app", "loadtests", "examples"):
    for path in (ROOT / folder).rglob("*.py"):
        for name in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.MULTILINE):
            CLASSES.setdefault(name, []).append(path.read_text("utf-8"))

LONGEST = 100  # columns of a line of prose
TUTORIAL = "tutorial.md"  # its files are the reader's own


def prose(page: Path) -> Iterator[str]:
    """The lines of a page, without code blocks."""
    fenced = False
    for line in page.read_text("utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield line


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to, as GitHub makes them."""
    headings = [line.lstrip("#").strip().lower() for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def code_spans(page: Path) -> set[str]:
    return {span for line in prose(page) for span in re.findall(r"`([^`]+)`", line)}


def rows(page: Path, *headers: str) -> list[list[str]]:
    """The rows of all tables of a page whose first column has one of these headers."""
    found: list[list[str]] = []
    listed = False
    before = ""
    for line in prose(page):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            listed = False
        elif not before.startswith("|"):
            listed = cells[0] in headers
        elif listed and not set(line) <= set("|-: "):
            found.append(cells)
        before = line
    return found


DOCS = ROOT / "docs"
LOG = DOCS / "log.md"


@each_page
def test_links_lead_somewhere(page: Path):
    """A link within the project leads to a file, and to a heading of it where it names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading"


@each_page
def test_lines_are_short(page: Path):
    """Prose has at most 100 columns; tables and lines that a link makes longer are excepted."""
    for line in prose(page):
        text = re.sub(r"\([^)\s]+\)|<?https?://\S+", "", line)
        assert len(text) <= LONGEST or line.startswith("|"), line


@each_page
def test_files_that_a_page_names_exist(page: Path):
    """A path in a code span is a path of the repository, or one below the package, the tests or the page's folder."""
    if page.name == TUTORIAL:
        return
    for span in code_spans(page):
        if re.fullmatch(r"(?:[\w.-]+/)+[\w-]+\.(?:py|md|txt|toml|cfg|yaml)", span):
            assert any((folder / span).exists() for folder in (ROOT, PACKAGE, ROOT / "tests", page.parent)), span


@each_page
def test_methods_that_a_page_names_exist(page: Path):
    """`Class.method` in a code span is a class of the project with such a method, or an attribute."""
    for span in code_spans(page):
        if match := re.fullmatch(r"([A-Z]\w*[a-z]\w*)\.([a-z_]\w+)", span):
            bodies = CLASSES.get(match[1], [])
            assert any(re.search(rf"\b(?:def|self\.) ?{match[2]}\b", body) for body in bodies), span


@each_page
def test_variables_that_a_page_names_exist(page: Path):
    """An `EPOLLARD_...` in a page is an option's variable, or one that the server itself sets or reads."""
    known = {*map(options.variable, options.OPTIONS), "EPOLLARD_CONFIG", "EPOLLARD_WORKER_ID", "EPOLLARD_GENERATION"}
    known |= {"EPOLLARD_HANDOVER", "EPOLLARD_TEST_SCALE", "EPOLLARD_SERVICE_HOST", "EPOLLARD_PORT", "EPOLLARD_SOME_NAME"}
    assert set(re.findall(r"EPOLLARD_[A-Z_]+[A-Z]", page.read_text("utf-8"))) <= known


def test_every_module_is_in_the_table():
    """docs/design.md has a row for each module, and for no other."""
    modules = {
        str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")
    }
    assert {row[0].strip("`") for row in rows(DOCS / "design.md", "module")} == modules


def test_the_levels_are_those_of_the_imports():
    """In the drawing of docs/design.md each folder stands above all that it imports."""
    drawn = re.findall(r"^([1-9])   (\w.*)$", (DOCS / "design.md").read_text("utf-8"), re.MULTILINE)
    levels = {name: int(level) for level, names in drawn for name in names.split()}
    assert levels.keys() == IMPORTS.keys()
    assert not [(name, target) for name, targets in IMPORTS.items() for target in targets if levels[target] >= levels[name]]


def test_every_metric_is_listed():
    """docs/log.md has a row for each metric, with its type, and for no other."""
    facts = Facts(now=0.0, ending="", desired=1, known=0, generation=1, slots=(), processes=(), past=[0] * WIDTH)
    types = re.findall(r"^# TYPE (\w+) (\w+)$", metrics.text(facts), re.MULTILINE)
    assert sorted((row[0].strip("`").partition("{")[0], row[1]) for row in rows(LOG, "metric")) == sorted(types)


def test_every_signal_is_listed():
    """docs/signals.md says what each signal does that the supervisor handles, and to a worker each that it handles."""
    to_supervisor, to_worker = (
        {name for row in table for name in row[0].split(", ")} for table in signal_tables(DOCS / "signals.md")
    )
    assert {f"SIG{name}" for name in to_supervisor} == {
        signal.Signals(number).name for number in supervisor._SIGNALS if number != signal.SIGCHLD
    }
    assert {f"SIG{name}" for name in to_worker} >= {signal.Signals(number).name for number in worker._SIGNALS} - {
        "SIGHUP",
        "SIGINT",
        "SIGTTIN",
        "SIGTTOU",
        "SIGUSR2",
    }


def signal_tables(page: Path) -> tuple[list[list[str]], list[list[str]]]:
    found = rows(page, "signal")
    end = next(number for number, row in enumerate(found) if row[0] == "USR2") + 1
    return found[:end], found[end:]


# The log reference.

LOGGERS = {"debug", "info", "warning", "error", "block", "exception"}
# Which argument of a call is one line of the log or of standard error, or the reason that stands in one.
LINES = {
    **dict.fromkeys(("BindError", "HandoverError", "ConfigError", "ApplicationError", "_failure"), 0),
    **dict.fromkeys(("ProtocolError", "FrameError", "_schedule_kill"), 1),
}
# Functions that return such a line, or the part of one that makes the difference.
TEXTS = {"_cause", "_missing", "_unknown", "excess_warning", "missing_warning"}
UNKNOWN = "{}"  # what a value is shown as
TREES = [ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]


class Messages(ast.NodeVisitor):
    """Collects what a module can write, as templates with `{}` for each value."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[str] = set()
        self._functions: list[ast.AST] = [tree]  # the module, and the functions that we are in

    def enter(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._functions.append(function)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.enter(node)
        self.generic_visit(node)
        self._functions.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = name_of(node.func)
        if loggers(node.func) or (isinstance(node.func, ast.Name) and any(map(loggers, self._values(called)))):
            self._add(node.args[0])
        elif called in LINES and len(node.args) > LINES[called]:
            self._add(node.args[LINES[called]])
        elif called == "print" and any("stderr" in ast.unparse(keyword.value) for keyword in node.keywords):
            self._add(node.args[0])

    def _add(self, text: ast.expr) -> None:
        lines = {template.partition("\n")[0] for template in self._templates(text)}
        self.found |= {line for line in lines if re.search(r"\w", line.replace(UNKNOWN, ""))}

    def _templates(self, text: ast.expr) -> set[str]:
        """What an expression may become. Of a value within a text only that of `TEXTS` is looked into."""
        if isinstance(text, ast.Constant):
            return {str(text.value)}
        if isinstance(text, ast.JoinedStr):
            return joined([self._templates(part) for part in text.values])
        if isinstance(text, ast.FormattedValue):
            return self._templates(text.value) if isinstance(text.value, ast.Call) else {UNKNOWN}
        if isinstance(text, ast.BinOp) and isinstance(text.op, ast.Add):
            return joined([self._templates(text.left), self._templates(text.right)])
        if isinstance(text, ast.IfExp):
            return self._templates(text.body) | self._templates(text.orelse)
        if isinstance(text, ast.Name):
            return set().union(*map(self._templates, self._values(text.id))) or {UNKNOWN}
        if isinstance(text, ast.Call) and name_of(text.func) in TEXTS:
            return returned(name_of(text.func))
        if isinstance(text, ast.Call) and name_of(text.func) == "format":
            assert isinstance(text.func, ast.Attribute)
            return {re.sub(r"\{[^{}]*\}", UNKNOWN, template) for template in self._templates(text.func.value)}
        return {UNKNOWN}

    def _values(self, name: str) -> list[ast.expr]:
        """What is assigned to a local variable, or else to a name of the module."""
        return assigned(self._functions[-1]).get(name) or assigned(self._functions[0]).get(name, [])


@cache
def assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """What each name is assigned; what is added to it is taken as given."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.AugAssign):
            name = name_of(node.target)
            found[name] = [ast.BinOp(value, ast.Add(), node.value) for value in found.get(name, [])]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found.setdefault(name_of(target), []).append(node.value)
    return found


def name_of(expression: ast.expr) -> str:
    """The last part of a dotted name; "" of anything else."""
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


def loggers(expression: ast.expr) -> bool:
    """Whether it is a function of `log` that writes a line, or a choice between some."""
    return any(
        isinstance(part, ast.Attribute) and part.attr in LOGGERS and name_of(part.value) == "log"
        for part in ast.walk(expression)
    )


@cache
def returned(function: str) -> set[str]:
    """What the package's function of that name may return."""
    found: set[str] = set()
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                reader = Messages(tree)
                reader.enter(node)
                values = [part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value]
                found |= set().union(*map(reader._templates, values))
    return found


def joined(parts: list[set[str]]) -> set[str]:
    return {"".join(choice) for choice in product(*parts)}


def messages() -> set[str]:
    """All lines that the package can write to standard error, and the reasons and errors that stand in them."""
    found: set[str] = set()
    for tree in TREES:
        reader = Messages(tree)
        reader.visit(tree)
        found |= reader.found
    return found


def listed() -> set[str]:
    """The templates of docs/log.md: a value is a word in braces there."""
    spans = [row[0].strip("`").replace(r"\|", "|") for row in rows(LOG, "line", "reason", "error")]
    return {re.sub(r"\{[^{}]*\}", UNKNOWN, span) for span in spans}


def test_every_line_of_the_log_is_listed():
    """docs/log.md has a row for each line that the server can write, and for no other."""
    written = messages()
    assert written - listed() == set(), "not in docs/log.md"
    assert listed() - written == set(), "in docs/log.md, but written nowhere"

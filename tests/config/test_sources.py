"""Which source wins, what each may contain, and the message for everything that is wrong. No server and no subprocess."""

from pathlib import Path

import pytest

from configured import load, refused
from epollard import cgroup
from epollard.config import sources
from epollard.config.options import OPTIONS, variable

# --- Precedence ------------------------------------------------------------------------------------------------------


def test_flag_beats_variable_beats_well_known_beats_file_beats_default(tmp_path: Path):
    """If the winning source is removed, the next one counts; each value knows its source."""
    (tmp_path / "epollard.toml").write_text("workers = 4")
    words, environ = ["--workers", "1"], {"EPOLLARD_WORKERS": "2", "WORKERS": "3", "WEB_CONCURRENCY": "33"}
    found = []
    for taken in ("", "flag", "EPOLLARD_WORKERS", "WORKERS", "WEB_CONCURRENCY", "file"):
        if taken == "flag":
            words.clear()
        elif taken == "file":
            (tmp_path / "epollard.toml").unlink()
        environ.pop(taken, None)
        loaded = load(*words, **environ)
        found.append((loaded.config.workers, loaded.sources["workers"]))
    auto, reason = cgroup.size()
    assert found == [
        (1, "--workers"),
        (2, "EPOLLARD_WORKERS"),
        (3, "WORKERS"),
        (33, "WEB_CONCURRENCY"),
        (4, "epollard.toml: workers"),
        (auto, f"default (auto; {reason})"),
    ]


def test_an_empty_variable_counts_as_unset():
    """`WEB_CONCURRENCY=""`, as Compose files and platforms pass it, is not a mistake; nor is an empty variable of our own."""
    empty = dict.fromkeys(["HOST", "PORT", "WORKERS", "WEB_CONCURRENCY", "THREADS", "EPOLLARD_TYPO", "EPOLLARD_CONFIG"], "")
    empty |= {variable(key): "" for key in OPTIONS}
    assert load(**empty) == load()
    assert load(WORKERS="", WEB_CONCURRENCY="3").config.workers == 3


@pytest.mark.parametrize("key", OPTIONS)
def test_an_empty_string_in_a_file_counts_as_unset(key: str, tmp_path: Path):
    """Files follow the rule for variables, so that the output of --print-config can be read back."""
    (tmp_path / "epollard.toml").write_text(f'{key} = ""')
    assert load() == load(EPOLLARD_CONFIG="epollard.toml")
    assert load().sources[key].startswith("default")


def test_only_the_winning_value_is_checked():
    """A flag is always a way out of a bad value elsewhere."""
    environ = {"EPOLLARD_WORKERS": "x", "THREADS": "x", "PORT": "x"}
    loaded = load("--workers", "2", "--threads", "3", "--bind", "127.0.0.1:0", **environ)
    assert (loaded.config.workers, loaded.config.threads) == (2, 3)


BINDS = [
    ({}, "", ("127.0.0.1:8000",), "default"),
    ({"PORT": "9000"}, "", ("127.0.0.1:9000",), "PORT"),
    ({"HOST": "0.0.0.0"}, "", ("0.0.0.0:8000",), "HOST"),
    ({"HOST": "::", "PORT": "1"}, "", ("[::]:1",), "HOST and PORT"),
    ({"HOST": "[::1]"}, "", ("[::1]:8000",), "HOST"),
    ({"PORT": "9000"}, "0.0.0.0:80", ("0.0.0.0:9000",), "PORT"),
    ({"HOST": "::1"}, "0.0.0.0:80", ("[::1]:80",), "HOST"),
    ({"PORT": "9000"}, "unix:x", ("127.0.0.1:9000",), "PORT"),
    ({"PORT": "9", "EPOLLARD_BIND": "0.0.0.0:80, unix:x,[::]:80"}, "", ("0.0.0.0:80", "unix:x", "[::]:80"), "EPOLLARD_BIND"),
    ({}, "0.0.0.0:80", ("0.0.0.0:80",), "epollard.toml: bind"),
    ({}, '["0.0.0.0:80", "unix:x,y"]', ("0.0.0.0:80", "unix:x,y"), "epollard.toml: bind"),
    ({"PORT": "9"}, '["0.0.0.0:80", "unix:x"]', ("127.0.0.1:9",), "PORT"),
]


@pytest.mark.parametrize(("environ", "file", "bind", "source"), BINDS)
def test_host_and_port_change_their_half_of_the_address(
    environ: dict[str, str], file: str, bind: tuple[str, ...], source: str, tmp_path: Path
):
    """HOST and PORT each change the one address of the file or the default; EPOLLARD_BIND overrides both."""
    if file:
        (tmp_path / "epollard.toml").write_text(f"bind = {file}" if file.startswith("[") else f'bind = "{file}"')
    loaded = load(**environ)
    assert (loaded.config.bind, loaded.sources["bind"]) == (bind, source)


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"PORT": "http"}, "PORT: 'http' is not a number from 0 to 65535"),
        ({"PORT": "65536"}, "PORT: '65536' is not a number from 0 to 65535"),
        ({"PORT": "+80"}, "PORT: '+80' is not a number from 0 to 65535"),
        ({"HOST": "a b"}, "HOST: 'a b' is not a host name or an IP address"),
        ({"HOST": "::g"}, "HOST: '::g' is not a host name or an IP address"),
        ({"WORKERS": "many"}, "WORKERS: 'many' is not a number from 1 to 1024, auto, or two of these as MIN..MAX"),
        ({"THREADS": "0"}, "THREADS: '0' is not a number from 1 to 1024"),
    ],
)
def test_a_bad_well_known_variable_is_refused(environ: dict[str, str], line: str):
    """The line names the variable that was set, not the option that it stands for."""
    assert refused(**environ) == line


def test_bind_may_be_repeated_and_of_any_other_flag_the_last_one_wins():
    """Several addresses need several flags; the default of a wrapper script can be overridden by appending."""
    loaded = load("--bind", "127.0.0.1:1", "--threads", "2", "--bind=[::1]:1", "--threads", "3")
    assert loaded.config.bind == ("127.0.0.1:1", "[::1]:1")
    assert loaded.config.threads == 3


def test_the_same_address_twice_is_refused_but_not_port_0():
    """With SO_REUSEPORT both binds would succeed, and each listener would get half of the traffic."""
    assert refused("--bind", "0.0.0.0:80", "--bind", "0.0.0.0:080") == "--bind: '0.0.0.0:80' is given twice; once is enough"
    assert load("--bind", "127.0.0.1:0", "--bind", "127.0.0.1:0").config.bind == ("127.0.0.1:0", "127.0.0.1:0")


def test_the_number_of_workers_comes_with_its_reason():
    """A number that was given names its source; `auto`, which is the default, shows how it was computed."""
    assert load("--workers", "1").config.workers_reason == "1 worker: from --workers"
    assert load(WEB_CONCURRENCY="4").config.workers_reason == "4 workers: from WEB_CONCURRENCY"
    assert load(WORKERS="auto").config.workers_reason == load().config.workers_reason == cgroup.size().reason


@pytest.mark.parametrize(
    ("text", "least", "most", "reason"),
    [
        ("4", 4, 4, "4 workers: from WORKERS"),
        ("2..8", 2, 8, "2 to 8 workers: from WORKERS"),
        ("3..3", 3, 3, "3 workers: from WORKERS"),
        ("auto", 4, 4, "4 workers: quota x"),
        ("2..auto", 2, 4, "2 to 4 workers: quota x"),
        ("auto..9", 4, 9, "4 to 9 workers: quota x"),
        ("auto..2", 2, 2, "2 workers: quota x"),  # auto is more than the number
        ("6..auto", 6, 6, "6 workers: quota x"),  # or less than it
    ],
)
def test_workers_may_be_a_range(text: str, least: int, most: int, reason: str, monkeypatch: pytest.MonkeyPatch):
    """Either end may be auto; if the two then contradict each other, the end that is a number counts."""
    monkeypatch.setattr(cgroup, "size", lambda: cgroup.Sizing(4, "4 workers: quota x"))
    loaded = load(WORKERS=text)
    assert (loaded.config.workers, loaded.config.most_workers, loaded.config.workers_reason) == (least, most, reason)


# --- Unknown names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("--worker", "--workers"),
        ("--wokers=3", "--workers"),
        ("--keepalive", "--keep-alive"),
        ("--keep_alive", "--keep-alive"),
        ("--print", "--print-config"),
        ("-w", "--workers"),
        ("-b", "--bind"),
        ("--wat", ""),
        ("-", ""),
        ("-\n", ""),
    ],
)
def test_an_unknown_flag_gets_a_suggestion(word: str, right: str):
    """A flag that is misspelled, abbreviated or another server's is refused, never silently accepted."""
    line = refused(word, "1")
    assert line.startswith(f"unknown option {word.split('=')[0]!r}; ")
    assert line.endswith(f"did you mean {right}?" if right else "epollard --help lists all options")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("EPOLLARD_WORKER", "EPOLLARD_WORKERS"),
        ("EPOLLARD_KEEPALIVE", "EPOLLARD_KEEP_ALIVE"),
        ("EPOLLARD_PORT", "PORT"),
        ("EPOLLARD_HOST", "HOST"),
        ("EPOLLARD_ZZZ", ""),
        ("EPOLLARD_", ""),
        ("EPOLLARD_WORKERS_REASON", "EPOLLARD_WORKERS"),
    ],
)
def test_an_unknown_variable_gets_a_suggestion(name: str, right: str):
    """A typo in a variable must not leave a limit at its default unnoticed."""
    line = refused(**{name: "1"})
    assert line.startswith(f"unknown variable {name!r}; ")
    assert line.endswith(f"did you mean {right}?" if right else "epollard --help lists all options")


def test_variables_that_are_not_options_are_tolerated():
    """Those that the server sets for its workers, and those that Kubernetes sets for a Service called epollard."""
    linked = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://10.0.0.1:80"}
    linked |= {"PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_PROTO": "tcp", "PORT_80_TCP_ADDR": "10.0.0.1"}
    environ = {f"EPOLLARD_{prefix}{name}": text for prefix in ("", "ADMIN_") for name, text in linked.items()}
    environ |= {"EPOLLARD_WORKER_ID": "3", "EPOLLARD_GENERATION": "2", "EPOLLARD_TEST_SCALE": "4", "EPOLLARDX": "1"}
    assert load(**environ) == load()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--threads"], "--threads: the value is missing; it should be a number from 1 to 1024"),
        (["--threads", "--workers"], "--threads: the value is missing; it should be a number from 1 to 1024"),
        (["--config"], "--config: the value is missing; it should be the name of a TOML file"),
        (["--check=yes"], "--check: takes no value, but 'yes' is given"),
        (["one:app", "two:app"], "unexpected argument 'two:app'; the application is already named: 'one:app'"),
        (["--config", "none.toml"], "--config: 'none.toml' does not exist; name a TOML file"),
        (["--config", "."], "--config: '.' cannot be read: Is a directory"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words: list[str], line: str):
    """The line names the part that is missing or unexpected."""
    assert refused(*words) == line


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ([], ""),
        (["--check"], "--check"),
        (["--print-config", "x:y"], "--print-config"),
        (["-h"], "--help"),
        (["--threads", "8", "--help", "--nonsense"], "--help"),
        (["--version", "--nonsense"], "--version"),
    ],
)
def test_actions(words: list[str], action: str):
    """Help and version are shown whatever else follows them on the line."""
    assert sources.parse_arguments(words).action == action


# --- Files -----------------------------------------------------------------------------------------------------------


def test_which_file_is_read(tmp_path: Path):
    """--config, else EPOLLARD_CONFIG, else epollard.toml, else the table in pyproject.toml; one file, never a mixture."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n[tool.epollard]\nthreads = 1\nbacklog = 10\n")
    assert load().config.threads == 1
    assert load().sources["threads"] == "pyproject.toml: threads"
    (tmp_path / "epollard.toml").write_text("threads = 2")
    assert load().config.threads == 2
    assert load().config.backlog != 10
    (tmp_path / "a.toml").write_text("threads = 3")
    (tmp_path / "b.toml").write_text("threads = 4")
    assert load(EPOLLARD_CONFIG="a.toml").config.threads == 3
    assert load("--config", "b.toml", EPOLLARD_CONFIG="a.toml").config.threads == 4
    assert load("--config", "pyproject.toml").config.threads == 1
    assert refused(EPOLLARD_CONFIG="none.toml").startswith("EPOLLARD_CONFIG: ")


def test_toml_types(tmp_path: Path):
    """A number may be a TOML number, and several addresses are a TOML list; both are checked like any other text."""
    (tmp_path / "epollard.toml").write_text("threads = 3\nkeep_alive = 2.5\nmax_body = 10\nbind = ['unix:x', 'unix:y']\n")
    read = load().config
    assert (read.threads, read.keep_alive, read.max_body, read.bind) == (3, 2.5, 10, ("unix:x", "unix:y"))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("worker = 3", "epollard.toml: unknown key 'worker'; did you mean workers?"),
        ("keep-alive = 3", "epollard.toml: unknown key 'keep-alive'; did you mean keep_alive?"),
        ("config = 'x'", "epollard.toml: unknown key 'config'; epollard --help lists all options"),
        ("workers = 0", "epollard.toml: workers: '0' is not a number from 1 to 1024, auto, or two of these as MIN..MAX"),
        ("workers = true", "epollard.toml: workers: 'True' is not a number from 1 to 1024, auto, or two of these as MIN..MAX"),
        ("app = true", "epollard.toml: app: 'True' is not MODULE:ATTRIBUTE"),
        ("workers = [1]", "epollard.toml: workers: '[1]' is not a number from 1 to 1024, auto, or two of these as MIN..MAX"),
        ("threads = 2.0", "epollard.toml: threads: '2.0' is not a number from 1 to 1024"),
        ("keep_alive = inf", "epollard.toml: keep_alive: 'inf' is not a time above 0"),
        ("bind = []", "epollard.toml: bind: '[]' is not HOST:PORT"),
        ("bind = [8000]", "epollard.toml: bind: '8000' is not HOST:PORT"),
        ("bind = [['x:1']]", "epollard.toml: bind: \"[['x:1']]\" is not HOST:PORT"),
        ("[workers]\nx = 1", "epollard.toml: workers: \"{'x': 1}\" is not a number"),
        ("workers = ", "configuration: 'epollard.toml' is not valid TOML: Invalid value (at "),
        ("x = " + 9999 * "[", "configuration: 'epollard.toml' is not valid TOML: "),
        ("x = '\udcff'", "configuration: 'epollard.toml' is not valid TOML: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_file_is_refused(file: str, line: str, tmp_path: Path):
    """The line names the file and the key."""
    (tmp_path / "epollard.toml").write_text(file, "utf-8", "surrogateescape")
    assert refused().startswith(line)


@pytest.mark.parametrize("text", ["", "[tool]\n", "[tool.other]\nx = 1\n", "tool = 3\n"])
def test_a_pyproject_without_our_table_is_ignored(text: str, tmp_path: Path):
    """Every Python project has a pyproject.toml; only one that is named explicitly must have the table."""
    (tmp_path / "pyproject.toml").write_text(text)
    assert load().sources["threads"] == "default"
    assert refused("--config", "pyproject.toml") == "--config: 'pyproject.toml' has no table [tool.epollard]; name a TOML file"


@pytest.mark.parametrize("text", ["[tool]\nepollard = 3\n", "[[tool.epollard]]\nthreads = 3\n"])
def test_our_table_has_to_be_a_table(text: str, tmp_path: Path):
    """Anything else under the name was meant for this server, so it is not silently ignored."""
    (tmp_path / "pyproject.toml").write_text(text)
    wrong = "tool.epollard in 'pyproject.toml' is not a table; write [tool.epollard]"
    assert refused() == f"configuration: {wrong}"
    assert refused("--config", "pyproject.toml") == f"--config: {wrong}"

"""Rows of what may be written and what comes of it. No server, no subprocess; files in a directory of the test's own."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from epollard import cgroup, log
from epollard.config import options

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(*words, **environ):
    return options.load(options.parse_arguments(words).given, environ)


def refused(*words, **environ):
    """The one line that is said about a configuration that is refused."""
    with pytest.raises(options.ConfigError) as caught:
        load(*words, **environ)
    line = str(caught.value)
    assert line.isprintable()
    return line


# --- Values ----------------------------------------------------------------------------------------------------------

VALUES = [
    ("--workers", "1", "workers", 1),
    ("--workers", "1024", "workers", 1024),
    ("--threads", "1", "threads", 1),
    ("--backlog", "1", "backlog", 1),
    ("--max-headers", "7", "max_headers", 7),
    ("--max-body", "0", "max_body", 0),
    ("--max-body", "1", "max_body", 1),
    ("--max-body", "64k", "max_body", 65536),
    ("--max-body", "64K", "max_body", 65536),
    ("--max-body", "100M", "max_body", 100 * 2**20),
    ("--max-body", "8KiB", "max_body", 8192),
    ("--max-body", "8 KiB", "max_body", 8192),
    ("--max-body", "1g", "max_body", 2**30),
    ("--keep-alive", "75", "keep_alive", 75.0),
    ("--keep-alive", "1.5", "keep_alive", 1.5),
    ("--keep-alive", "500ms", "keep_alive", 0.5),
    ("--keep-alive", "5s", "keep_alive", 5.0),
    ("--keep-alive", "2m", "keep_alive", 120.0),
    ("--keep-alive", "24h", "keep_alive", 86400.0),
    ("--trigger", "oneshot", "trigger", "oneshot"),
    ("--tcp", "cork", "tcp", "cork"),
    ("--access-log", "json", "access_log", "json"),
    ("--log-level", "error", "log_level", "error"),
    ("--bind", "127.0.0.1:0", "bind", ("127.0.0.1:0",)),
    ("--bind", "0.0.0.0:00080", "bind", ("0.0.0.0:80",)),
    ("--bind", "localhost:65535", "bind", ("localhost:65535",)),
    ("--bind", "my_web.example-1.org:1", "bind", ("my_web.example-1.org:1",)),
    ("--bind", "[::]:8000", "bind", ("[::]:8000",)),
    ("--bind", "[fe80::1%eth0]:8000", "bind", ("[fe80::1%eth0]:8000",)),
    ("--bind", "unix:/run/web,1.sock", "bind", ("unix:/run/web,1.sock",)),
    ("--bind", "unix:" + 107 * "x", "bind", ("unix:" + 107 * "x",)),
    ("--chdir", "/", "chdir", "/"),
]


@pytest.mark.parametrize(("flag", "text", "key", "value"), VALUES)
def test_a_value_is_read_alike_from_flag_variable_and_file(flag, text, key, value, tmp_path):
    """Wherever a value comes from, the same text means the same, in either way to write a flag."""
    assert getattr(load(flag, text).config, key) == value
    assert getattr(load(f"{flag}={text}").config, key) == value
    if "," not in text:
        assert getattr(load(**{options.variable(key): text}).config, key) == value
    (tmp_path / "epollard.toml").write_text(f'{key} = ["{text}"]' if key == "bind" else f'{key} = "{text}"')
    assert getattr(load().config, key) == value


BAD_VALUES = [
    ("workers", ["0", "1025", "-1", "+5", "1_0", " 1", "1 ", "\u0661", "\u00b2", "1.5", "Auto", "", "9" * 5000]),
    ("threads", ["0", "1025", "auto", "8k"]),
    ("backlog", ["0", "-1", "somaxconn", str(2**31)]),
    ("keep_alive", ["0", "0.0", "-1", "1e3", "inf", "nan", ".5", "5.", "5 s", "5S", "1d", "25h", "1_0", "\u0665", "9" * 5000]),
    ("max_line", ["0", "63", "2M", "-8k", "8kk", "8b", "8KB", "8.5k", "0x10", "\u0668k", "8\u212a", "9" * 5000]),
    ("max_headers", ["0", "10001"]),
    ("trigger", ["", "Edge", "lt"]),
    ("tcp", ["on"]),
    ("access_log", ["on"]),
    ("log_level", ["INFO", "trace"]),
    ("chdir", ["/nonexistent", "/etc/passwd", "", "\0"]),
    ("bind", ["", ":", "::", "x", ":80", "80", "x:", "x:http", "x:65536", "x:+80", "x:8_0", "x:\u0668", "x: 80", "x y:80"]),
    ("bind", ["x:80:80", "a,b:80", "-x:80", "x-:80", "256.1.1.1:80", "1.2.3:80", "x\n:80", "http://x:80/"]),
    ("bind", ["[::1]", "[::g]:80", "[]:80", "[1.2.3.4]:80", "::1:80", "[::1%\n]:80"]),
    ("bind", ["/run/x", "unix:", "unix:" + 108 * "x", "unix:" + 54 * "\u00e9", "unix:a\0b"]),
]


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in BAD_VALUES for text in texts])
def test_a_bad_value_is_refused_in_one_line(key, text):
    """The line says where the value came from, what it is, and what would be right."""
    line = refused(options.flag(key), text)
    assert line.startswith(f"{options.flag(key)}: {text!r} is not {options.OPTIONS[key].kind.expects}")


HINTS = [
    ("8000", "did you mean 0.0.0.0:8000 (every interface) or 127.0.0.1:8000 (this machine only)?"),
    (":8000", "did you mean 0.0.0.0:8000 (every interface) or 127.0.0.1:8000 (this machine only)?"),
    ("localhost", "did you mean localhost:8000?"),
    ("::", "did you mean [::]:8000?"),
    ("::1", "did you mean [::1]:8000?"),
    ("::1:80", "did you mean [::1]:80?"),
    ("/run/web.sock", "did you mean unix:/run/web.sock?"),
    ("http://127.0.0.1:8000/", "did you mean 127.0.0.1:8000?"),
    ("http://localhost", "did you mean localhost:80?"),
]


@pytest.mark.parametrize(("text", "hint"), HINTS)
def test_a_common_mistake_in_an_address_is_answered_with_what_was_meant(text, hint):
    """What is proposed for an address can be pasted, and is then accepted."""
    assert refused("--bind", text).endswith("; " + hint)
    proposed = hint.removeprefix("did you mean ").rstrip("?").split(" ")[0]
    assert load("--bind", proposed).config.bind == (proposed,)


APPS = ["app", "my-app", "pkg.mod", "mod:app", "pkg.mod:app.wsgi_app", "mod:make()", "pkg.mod:a.make()", "m\u00f6d:\u00e4pp"]
NO_APPS = [
    ("src/hello.py", "src.hello"),
    ("./hello.py:app", "hello:app"),
    ("src/hello:make()", "src.hello:make()"),
    ("mod:make(1)", ""),
    ("mod:", ""),
    (":app", ""),
    ("mod:a:b", ""),
    ("mod:1", ""),
    ("mod..x:app", ""),
    ("mod app", ""),
    ("mod:app\n", ""),
]


@pytest.mark.parametrize("text", APPS)
def test_an_application_is_named_by_position_variable_or_key(text, tmp_path):
    """`APP`, `EPOLLARD_APP` and the key `app` are one option."""
    assert load(text).config.app == text
    assert load(EPOLLARD_APP=text).config.app == text
    assert load(APP=text).config.app == text
    (tmp_path / "epollard.toml").write_text(f'app = "{text}"', "utf-8")
    assert load().config.app == text
    assert load("other", EPOLLARD_APP="another").config.app == "other"


@pytest.mark.parametrize(("text", "guess"), NO_APPS)
def test_what_cannot_name_an_application_is_refused_before_anything_starts(text, guess):
    """A path is answered with the module that it is."""
    line = refused(text)
    assert line.startswith(f"command line: {text!r} is not MODULE:ATTRIBUTE or MODULE:FACTORY()")
    assert line.endswith(f"; did you mean {guess}?" if guess else "FACTORY()")


@pytest.mark.parametrize("words", [(), ("",)])
def test_without_an_application_there_is_the_demo(words):
    """No APP, or an empty one (an unset variable in a compose file), is the built-in demo."""
    assert load(*words, EPOLLARD_APP="").config.app is None


# --- Precedence ------------------------------------------------------------------------------------------------------


def test_flag_beats_variable_beats_well_known_beats_file_beats_default(tmp_path):
    """Take the winner away, and the next in line holds; each value knows its source."""
    (tmp_path / "epollard.toml").write_text("workers = 4")
    words, environ = ["--workers", "1"], {"EPOLLARD_WORKERS": "2", "WORKERS": "3", "WEB_CONCURRENCY": "33"}
    found = []
    for taken in (None, "flag", "EPOLLARD_WORKERS", "WORKERS", "WEB_CONCURRENCY", "file"):
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
    """`WEB_CONCURRENCY=""`, as compose files and platforms pass it, is not a mistake; nor is an empty one of our own."""
    empty = dict.fromkeys(["HOST", "PORT", "WORKERS", "WEB_CONCURRENCY", "THREADS", "EPOLLARD_TYPO", "EPOLLARD_CONFIG"], "")
    empty |= {options.variable(key): "" for key in options.OPTIONS}
    assert load(**empty) == load()
    assert load(WORKERS="", WEB_CONCURRENCY="3").config.workers == 3


@pytest.mark.parametrize("key", options.OPTIONS)
def test_an_empty_string_in_a_file_counts_as_unset(key, tmp_path):
    """The rule for variables holds for files, so that what --print-config shows can be read back."""
    (tmp_path / "epollard.toml").write_text(f'{key} = ""')
    assert load() == load(EPOLLARD_CONFIG="epollard.toml")
    assert load().sources[key].startswith("default")


def test_only_the_winner_is_judged():
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
def test_host_and_port_change_their_half_of_the_address(environ, file, bind, source, tmp_path):
    """HOST and PORT work each on its own, over the one address of the file or the default; EPOLLARD_BIND goes before both."""
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
def test_a_bad_well_known_variable_is_refused(environ, line):
    """The line names the variable that was set, not the option that it stands for."""
    assert refused(**environ) == line


def test_bind_may_be_repeated_and_the_last_of_another_flag_wins():
    """Several addresses need several flags; a wrapper's default may be overruled by appending."""
    loaded = load("--bind", "127.0.0.1:1", "--threads", "2", "--bind=[::1]:1", "--threads", "3")
    assert loaded.config.bind == ("127.0.0.1:1", "[::1]:1")
    assert loaded.config.threads == 3


def test_the_same_address_twice_is_refused_but_not_port_0():
    """Two listeners on one address would both succeed with SO_REUSEPORT, and halve the traffic of each."""
    assert refused("--bind", "0.0.0.0:80", "--bind", "0.0.0.0:080") == "--bind: '0.0.0.0:80' is given twice; once is enough"
    assert load("--bind", "127.0.0.1:0", "--bind", "127.0.0.1:0").config.bind == ("127.0.0.1:0", "127.0.0.1:0")


def test_the_number_of_workers_has_a_reason_in_words():
    """A number from outside names its source; `auto` shows its sum, as does the default."""
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
        ("auto..2", 2, 2, "2 workers: quota x"),  # where auto is more than was thought
        ("6..auto", 6, 6, "6 workers: quota x"),  # or less
    ],
)
def test_workers_may_have_bounds(text, least, most, reason, monkeypatch):
    """MIN..MAX: either may be auto, and the other one holds where the machine is of another size than was thought."""
    monkeypatch.setattr(cgroup, "size", lambda: cgroup.Sizing(4, "4 workers: quota x"))
    loaded = load(WORKERS=text)
    assert (loaded.config.workers, loaded.config.most_workers, loaded.config.workers_reason) == (least, most, reason)
    shown = next(line for line in options.show(loaded).splitlines() if line.startswith("workers"))
    assert shown.partition("#")[0].strip() == (f'workers = "{least}..{most}"' if most > least else f"workers = {least}")


@pytest.mark.parametrize("text", ["..", "1..", "..4", "0..4", "1...4", "1-4", "1..2..3", "1..1025", "many..auto"])
def test_bad_bounds_are_refused(text):
    """Both must be there, and each a number or auto."""
    assert refused(WORKERS=text).startswith(f"WORKERS: {text!r} is not a number from 1 to 1024, auto, or two of these")


def test_bounds_in_the_wrong_order_are_asked_about():
    """The hint turns them round."""
    assert refused("--workers", "8..2").endswith("; did you mean 2..8?")


def test_the_systems_backlog_is_somaxconn():
    """By default the kernel's limit, whatever it is here, is the one that holds."""
    assert load().config.backlog == int(Path("/proc/sys/net/core/somaxconn").read_text())


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
def test_an_unknown_flag_is_answered_with_the_right_one(word, right):
    """A mistyped, abbreviated or foreign flag is never guessed at silently."""
    line = refused(word, "1")
    assert line.startswith(f"unknown option {word.split('=')[0]!r}; ")
    assert line.endswith(f"did you mean {right}?" if right else "epollard --help shows all there are")


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
def test_an_unknown_variable_is_answered_with_the_right_one(name, right):
    """A typo in a variable must not leave a limit at its default unnoticed."""
    line = refused(**{name: "1"})
    assert line.startswith(f"unknown variable {name!r}; ")
    assert line.endswith(f"did you mean {right}?" if right else "epollard --help shows all there are")


def test_variables_that_are_not_options_are_tolerated():
    """What we tell workers ourselves, and what Kubernetes sets beside a Service of our name (`kubectl exec -- env`)."""
    linked = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://10.0.0.1:80"}
    linked |= {"PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_PROTO": "tcp", "PORT_80_TCP_ADDR": "10.0.0.1"}
    environ = {f"EPOLLARD_{prefix}{name}": text for prefix in ("", "ADMIN_") for name, text in linked.items()}
    environ |= {"EPOLLARD_WORKER_ID": "3", "EPOLLARD_GENERATION": "2", "EPOLLARD_TEST_SCALE": "4", "EPOLLARDX": "1"}
    assert load(**environ) == load()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--threads"], "--threads: a value is missing: a number from 1 to 1024"),
        (["--threads", "--workers"], "--threads: a value is missing: a number from 1 to 1024"),
        (["--config"], "--config: a value is missing: the name of a TOML file"),
        (["--check=yes"], "--check: takes no value, but 'yes' is given"),
        (["one:app", "two:app"], "APP: 'two:app' is one too many: 'one:app' is to be served"),
        (["--config", "none.toml"], "--config: 'none.toml' is not there; name a TOML file"),
        (["--config", "."], "--config: '.' cannot be read: Is a directory"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words, line):
    """What is missing, or one too many, is named."""
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
def test_actions(words, action):
    """Help and version are shown whatever else is on the line after them."""
    assert options.parse_arguments(words).action == action


# --- Files -----------------------------------------------------------------------------------------------------------


def test_which_file_is_read(tmp_path):
    """--config, else EPOLLARD_CONFIG, else epollard.toml, else pyproject.toml's table; one file, never a mixture."""
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


def test_toml_types(tmp_path):
    """Numbers may be numbers; a list is a list; text in either is judged as anywhere else."""
    (tmp_path / "epollard.toml").write_text("threads = 3\nkeep_alive = 2.5\nmax_body = 10\nbind = ['unix:x', 'unix:y']\n")
    read = load().config
    assert (read.threads, read.keep_alive, read.max_body, read.bind) == (3, 2.5, 10, ("unix:x", "unix:y"))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("worker = 3", "epollard.toml: unknown key 'worker'; did you mean workers?"),
        ("keep-alive = 3", "epollard.toml: unknown key 'keep-alive'; did you mean keep_alive?"),
        ("config = 'x'", "epollard.toml: unknown key 'config'; epollard --help shows all there are"),
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
        ("workers = ", "configuration: 'epollard.toml' is not TOML: Invalid value (at "),
        ("x = " + 9999 * "[", "configuration: 'epollard.toml' is not TOML: "),
        ("x = '\udcff'", "configuration: 'epollard.toml' is not TOML: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_file_is_refused(file, line, tmp_path):
    """The line names the file and the key."""
    (tmp_path / "epollard.toml").write_text(file, "utf-8", "surrogateescape")
    assert refused().startswith(line)


@pytest.mark.parametrize("text", ["", "[tool]\n", "[tool.other]\nx = 1\n", "tool = 3\n"])
def test_a_pyproject_without_our_table_is_none_of_our_business(text, tmp_path):
    """Every Python project has one; only the one that was named must have the table."""
    (tmp_path / "pyproject.toml").write_text(text)
    assert load().sources["threads"] == "default"
    assert refused("--config", "pyproject.toml") == "--config: 'pyproject.toml' has no table [tool.epollard]; name a TOML file"


@pytest.mark.parametrize("text", ["[tool]\nepollard = 3\n", "[[tool.epollard]]\nthreads = 3\n"])
def test_our_table_has_to_be_a_table(text, tmp_path):
    """Whoever wrote it meant it for us: it is not passed over in silence."""
    (tmp_path / "pyproject.toml").write_text(text)
    wrong = "'pyproject.toml' has tool.epollard, but not as the table [tool.epollard]"
    assert refused() == f"configuration: {wrong}"
    assert refused("--config", "pyproject.toml") == f"--config: {wrong}"


# --- What is shown ---------------------------------------------------------------------------------------------------


def test_print_config_can_be_read_back(tmp_path):
    """What --print-config shows is a TOML file that configures the same, and names each value's source beside it."""
    (tmp_path / r'quote"back\slash').mkdir()
    words = ["m\u00f6d:make()", "--bind", "[::]:80", "--bind", "unix:x", "--keep-alive", "500ms"]
    loaded = load(*words, "--chdir", r'quote"back\slash', THREADS="3")
    shown = options.show(loaded)
    assert set(tomllib.loads(shown)) == set(options.OPTIONS)
    (tmp_path / "shown.toml").write_text(shown, "utf-8")
    again = load("--config", "shown.toml")
    derived = {"workers_reason": "", "admin_asked": True}
    assert dataclasses.replace(again.config, **derived) == dataclasses.replace(loaded.config, **derived)
    lines = dict(line.split(" = ", 1) for line in shown.splitlines())
    assert lines["threads"].split() == ["3", "#", "THREADS"]
    assert lines["keep_alive"].split() == ["0.5", "#", "--keep-alive"]
    assert lines["app"].endswith("  # command line")


def test_help_shows_every_option():
    """Each flag with its metavar, default and well-known variables, in at most 96 columns."""
    shown = options.help_text()
    assert max(map(len, shown.splitlines())) <= 96
    words = " ".join(shown.split())
    for key, option in options.OPTIONS.items():
        if key != "app":
            also = f"; also {', '.join(option.also)}" if option.also else ""
            assert f"{options.flag(key)} {option.kind.metavar} {option.help}" in words
            assert f"[{option.default}{also}]" in words
    for name in ("[APP]", "--config FILE", "--check", "--print-config", "--version", "-h, --help"):
        assert name in words


def test_every_default_is_valid_and_every_field_an_option():
    """A default goes through its option's parser, as anything else does."""
    loaded = load()
    assert {field.name for field in dataclasses.fields(options.Config)} == {
        *options.OPTIONS,
        "most_workers",
        "workers_reason",
        "admin_asked",
    }
    assert loaded.config.max_line == 8192
    assert loaded.config.max_header_bytes == 65536
    assert loaded.config.max_body == 100 * 2**20
    assert {source.split(" ")[0] for source in loaded.sources.values()} == {"default"}


def test_log_levels_are_those_of_the_log():
    """What may be asked for is what the log knows."""
    for level in log.LEVELS:
        assert load("--log-level", level).config.log_level == level
    assert options.OPTIONS["log_level"].kind.metavar.split("|") == list(log.LEVELS)


def test_the_management_address_is_asked_for_or_not():
    """The default may be given up, what somebody wrote may not, be it the same address; `off` is none."""
    assert load().config.admin == "127.0.0.1:8001"
    assert not load().config.admin_asked
    assert load("--admin", "127.0.0.1:8001").config.admin_asked
    assert load(EPOLLARD_ADMIN="[::]:8001").config.admin_asked
    assert load(EPOLLARD_ADMIN="").config.admin == "127.0.0.1:8001"
    assert load("--admin", "off").config.admin == "off"
    with pytest.raises(options.ConfigError, match=r"'8001' is not HOST:PORT.*, or off; did you mean 0\.0\.0\.0:8001"):
        load("--admin", "8001")


def settings_table():
    """The table of docs/settings.md, from the declarations."""
    rows = ["| flag | variable | TOML key | default | meaning |", "|---|---|---|---|---|"]
    for key, option in options.OPTIONS.items():
        shown = "`APP`" if key == "app" else f"`{options.flag(key)} {option.kind.metavar}`"
        variables = ", ".join(f"`{name}`" for name in (options.variable(key), *option.also))
        default = f"`{option.default}`" if option.default else "the demo"
        cells = [shown.replace("|", "\\|") + " (repeatable)" * option.many, variables, f"`{key}`", default, option.help]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_documentation_lists_every_option_as_it_is():
    """docs/settings.md holds exactly the table that follows from config.py; on failure, paste the one shown."""
    assert settings_table() in SETTINGS.read_text("utf-8")

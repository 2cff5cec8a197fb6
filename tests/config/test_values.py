"""Types of values: rows of text and value, rows of text that is refused, and the hints."""

from pathlib import Path

import pytest

from configured import load, refused
from epollard.config.options import OPTIONS, flag, variable

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


@pytest.mark.parametrize(("name", "text", "key", "value"), VALUES)
def test_a_value_means_the_same_in_a_flag_a_variable_and_a_file(name: str, text: str, key: str, value: object, tmp_path: Path):
    """The same text means the same wherever it comes from, and in both forms of a flag."""
    assert getattr(load(name, text).config, key) == value
    assert getattr(load(f"{name}={text}").config, key) == value
    if "," not in text:
        assert getattr(load(**{variable(key): text}).config, key) == value
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
def test_a_bad_value_is_refused_in_one_line(key: str, text: str):
    """The line names the source of the value, shows the value, and describes a correct one."""
    line = refused(flag(key), text)
    assert line.startswith(f"{flag(key)}: {text!r} is not {OPTIONS[key].value_type.expects}")


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
def test_a_common_mistake_in_an_address_gets_a_suggestion(text: str, hint: str):
    """The suggested address can be pasted, and is then accepted."""
    assert refused("--bind", text).endswith("; " + hint)
    proposed = hint.removeprefix("did you mean ").rstrip("?").split(" ")[0]
    assert load("--bind", proposed).config.bind == (proposed,)


APPS = ["app", "my-app", "pkg.mod", "mod:app", "pkg.mod:app.wsgi_app", "mod:make()", "pkg.mod:a.make()", "m\u00f6d:\u00e4pp"]
NOT_APPS = [
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
def test_an_application_is_named_by_an_argument_a_variable_or_a_key(text: str, tmp_path: Path):
    """The argument `APP`, the variables `APP` and `EPOLLARD_APP` and the key `app` are one option."""
    assert load(text).config.app == text
    assert load(EPOLLARD_APP=text).config.app == text
    assert load(APP=text).config.app == text
    (tmp_path / "epollard.toml").write_text(f'app = "{text}"', "utf-8")
    assert load().config.app == text
    assert load("other", EPOLLARD_APP="another").config.app == "other"


@pytest.mark.parametrize(("text", "guess"), NOT_APPS)
def test_text_that_cannot_name_an_application_is_refused(text: str, guess: str):
    """A path to a file gets the name of its module as a suggestion."""
    line = refused(text)
    assert line.startswith(f"command line: {text!r} is not MODULE:ATTRIBUTE or MODULE:FACTORY()")
    assert line.endswith(f"; did you mean {guess}?" if guess else "FACTORY()")


@pytest.mark.parametrize("words", [(), ("",)])
def test_without_an_application_the_demo_is_served(words: tuple[str, ...]):
    """No APP, or an empty one (an unset variable in a Compose file), stands for the built-in demo."""
    assert load(*words, EPOLLARD_APP="").config.app is None


@pytest.mark.parametrize("text", ["..", "1..", "..4", "0..4", "1...4", "1-4", "1..2..3", "1..1025", "many..auto"])
def test_a_bad_range_of_workers_is_refused(text: str):
    """Both ends must be given, each as a number or auto."""
    assert refused(WORKERS=text).startswith(f"WORKERS: {text!r} is not a number from 1 to 1024, auto, or two of these")


def test_a_range_of_workers_in_the_wrong_order_gets_a_suggestion():
    """The suggestion is the range the other way round."""
    assert refused("--workers", "8..2").endswith("; did you mean 2..8?")


def test_the_systems_backlog_is_somaxconn():
    """By default the backlog is the kernel's own limit."""
    assert load().config.backlog == int(Path("/proc/sys/net/core/somaxconn").read_text())

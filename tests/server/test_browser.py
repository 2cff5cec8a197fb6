"""What users see in a real, headless browser: the demo's page, and the chat of `examples/chat` through a reload.

The browser is Chromium (`tests/install-browser` installs it), controlled through its DevTools protocol. Without a browser
the tests are skipped, except in CI, where they fail.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from harness import SCALE, WAIT, wait_for

CHAT = Path(__file__).parents[2] / "examples" / "chat"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = [
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # a container's /dev/shm is small
    "--disable-gpu",
    # A tab in the background must behave like one in front, and be as fast.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),  # the sandbox refuses root
]


class Browser:
    """Chromium, and the connection to it that all tabs share (chromedevtools.github.io/devtools-protocol)."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> Any:
        """Send a command and return its result. Events that arrive in between are kept in `events`."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        self._connection.send(json.dumps(command | ({"sessionId": session} if session else {})))
        while (reply := json.loads(self._connection.recv(WAIT))).get("id") != self._count:
            self.events.append(reply)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def open(self, url: str) -> "Tab":
        return Tab(self, url)


class Tab:
    """A page with its own storage, like the page of another user's browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in "Runtime", "Log", "Page":
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.run("location.href != 'about:blank' && document.readyState") == "complete", url)

    def call(self, method: str, **parameters: object) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field, as if by keyboard."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def enter(self) -> None:
        """Press Enter."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def shows(self, text: str, selector: str = "body") -> None:
        """Wait until the element shows the text."""
        script = f"document.querySelector({json.dumps(selector)}).innerText"
        wait_for(lambda: text in self.run(script), lambda: f"{text!r} in {self.run(script)!r}")

    @property
    def complaints(self) -> list[str]:
        """Problems that the browser has found with the page: exceptions, refused content, failed requests."""
        self.run("0")  # events that have happened already arrive before the reply to this
        found = [event["params"] for event in self._browser.events if event.get("sessionId") == self._session]
        entries = [params["entry"] for params in found if "entry" in params]
        thrown = [params["exceptionDetails"]["text"] for params in found if "exceptionDetails" in params]
        return thrown + [entry["text"] for entry in entries if entry["level"] in ("warning", "error")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        reason = "Chromium is not installed; tests/install-browser installs it"
        (pytest.skip if os.environ.get("CI", "").lower() in ("", "0", "false") else pytest.fail)(reason)
    directory = tmp_path_factory.mktemp("browser")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={directory}", "about:blank"],
            stdout=log,
            stderr=log,
            env=os.environ | {"HOME": str(directory)},
            start_new_session=True,
        )

    def address() -> str:
        """The URL it listens on, from its file of two lines, a port and a path."""
        assert process.poll() is None, (directory / "log").read_text("utf-8", "replace")
        file = directory / "DevToolsActivePort"
        lines = file.read_text("ascii").split() if file.exists() else []
        return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) == 2 else ""

    try:
        with connect(wait_for(address, "the browser's address", 30 * SCALE), proxy=None, max_size=None) as connection:
            yield Browser(connection)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it has several processes
        process.wait()


def join(browser: Browser, url: str, name: str) -> Tab:
    """Join the chat through the form, as a user with a keyboard."""
    tab = browser.open(url)
    tab.type("#name", name)
    tab.enter()
    tab.shows(f"Connected as {name}", "#status")
    return tab


def say(tab: Tab, text: str) -> None:
    tab.type("#text", text)
    tab.enter()


def test_the_demo_page(browser, start):
    """The demo's page renders with its style, names the worker that answered, and its links work."""
    server = start(None)
    tab = browser.open(server.url)
    tab.shows("epollard is serving", "h1")
    tab.shows(str(server.workers()[0]), "dl")
    assert tab.run("getComputedStyle(document.querySelector('dl')).display") == "grid"
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    tab.run("document.querySelector('a[href=\"/hello\"]').click()")
    tab.shows("Hello, World!")
    assert tab.complaints == []


def test_two_people_chat(browser, start):
    """Each reads the other's messages and sees who is present; a user that joins later reads the earlier messages."""
    server = start("chat:app", chdir=CHAT)
    ada, bob = (join(browser, server.url, name) for name in ("Ada", "Bob"))
    ada.shows("2 people here", "#present")
    say(ada, "Is anyone here?")
    for tab in ada, bob:
        tab.shows("Is anyone here?", "#log")
    say(bob, "I am. \N{DECIDUOUS TREE}")
    ada.shows("I am. \N{DECIDUOUS TREE}", "#log")
    assert ada.run("[...document.querySelectorAll('#log b')].map(name => name.textContent)") == ["Ada", "Bob"]
    assert ada.run("document.querySelectorAll('#log li.own').length") == 1
    assert ada.run("document.querySelector('#text').value") == ""
    late = join(browser, server.url, "Ada")
    late.shows("Connected as Ada 2", "#status")
    late.shows("I am.", "#log")
    late.call("Page.close")
    ada.shows("Ada 2 left", "#log")
    bob.shows("2 people here", "#present")
    for tab in ada, bob:
        assert tab.complaints == []
        tab.call("Page.close")


HTML = "<img src=x onerror=\"document.title='broken'\"><b>bold</b> <script>document.title='broken'</script> &amp;"


def test_html_is_text(browser, start):
    """HTML in a message or a name is shown as it was written, and does not become part of the page."""
    server = start("chat:app", chdir=CHAT)
    ada = join(browser, server.url, "Ada")
    mallory = join(browser, server.url, "<i>Mallory</i>")
    say(mallory, HTML)
    for tab in ada, mallory:
        tab.shows(HTML, "#log")
        tab.shows("<i>Mallory</i>", "#people")
        assert tab.run("document.querySelectorAll('#chat :is(img, i, script, p b)').length") == 0
        assert tab.run("document.title") == "lobby"
        assert tab.complaints == []
        tab.call("Page.close")


def test_a_chat_survives_a_reload(browser, start):
    """SIGHUP replaces the worker of two chatting users: both pages reconnect at the first attempt, and the chat continues.

    Earlier messages are still shown, and later ones arrive once.
    """
    server = start("chat:app", chdir=CHAT)
    ada, bob = (join(browser, server.url, name) for name in ("Ada", "Bob"))
    say(ada, "before")
    for tab in ada, bob:
        tab.shows("before", "#log")
    [old] = server.workers()
    closes = "closes = []; socket.addEventListener('close', event => closes.push(event.code))"
    for tab in ada, bob:
        tab.run(f"globalThis.{closes}")
    server.signal(signal.SIGHUP)
    for tab in ada, bob:
        wait_for(lambda tab=tab: tab.run("closes.length"), "the end of the first connection")
        wait_for(lambda tab=tab: tab.run("document.body.dataset.state") == "open", "the second connection")
        assert tab.run("closes") == [1012]
    wait_for(lambda: old not in server.workers(), "the old worker's end")
    for tab in ada, bob:
        tab.shows("2 people here", "#present")
    say(bob, "after")
    for tab in ada, bob:
        tab.shows("after", "#log")
        assert tab.run("[...document.querySelectorAll('#log p')].map(text => text.textContent)") == ["before", "after"]
        assert tab.complaints == []
        tab.call("Page.close")


def test_the_page_waits_for_an_absent_server(browser, start):
    """When the server is gone the page reports it, keeps the text being written, and retries until the server is back."""
    server = start("chat:app", chdir=CHAT)
    ada = join(browser, server.url, "Ada")
    ada.type("#text", "not said yet")
    server.stop()
    ada.shows("Connection lost", "#status")
    ada.enter()
    start("chat:app", chdir=CHAT, bind=f"127.0.0.1:{server.port}")
    ada.shows("Connected as Ada", "#status")
    assert ada.run("document.querySelectorAll('#log li').length") == 0
    ada.enter()
    ada.shows("not said yet", "#log")
    ada.call("Page.close")

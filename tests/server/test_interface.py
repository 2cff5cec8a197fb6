"""`--interface`: whether an application is WSGI or ASGI, detected or configured, and reported in the log."""

import pytest


@pytest.mark.parametrize(
    ("app", "interface", "kind"),
    [
        ("apps.either:asgi", "auto", "asgi"),
        ("apps.either:wsgi", "auto", "wsgi"),
        ("apps.either:app", "auto", "wsgi"),
        ("apps.either:app", "wsgi", "wsgi"),
        ("apps.either:app", "asgi", "asgi"),
    ],
)
def test_the_interface(start, app, interface, kind):
    """The interface is logged once, even with two workers. WSGI never runs within asyncio: a view may call `asyncio.run`."""
    server = start(app, interface=interface, workers=2)
    assert server.get("/").text == f"{kind} in a loop"
    assert server.log.count(f"{app} is {kind.upper()}\n") == 1

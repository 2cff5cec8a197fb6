"""A configuration from a command line and variables, or the one line with which it is refused."""

import pytest

from epollard.config import sources


def load(*words: str, **environ: str) -> sources.Loaded:
    return sources.load(sources.parse_arguments(words).given, environ)


def refused(*words: str, **environ: str) -> str:
    """The message for a configuration that is refused; it is always one line."""
    with pytest.raises(sources.ConfigError) as caught:
        load(*words, **environ)
    line = str(caught.value)
    assert line.isprintable()
    return line

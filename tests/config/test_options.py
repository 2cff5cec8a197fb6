"""The declarations: every field is an option with a valid default, or says that it is none."""

import dataclasses

import pytest

from configured import load
from epollard import log
from epollard.config import sources
from epollard.config.options import OPTIONS, Config, flag, variable


def test_every_default_is_valid_and_every_field_is_an_option():
    """A default is parsed like any other value; three fields follow from options and are none themselves."""
    loaded = load()
    assert {field.name for field in dataclasses.fields(Config)} == {
        *OPTIONS,
        "most_workers",
        "workers_reason",
        "admin_explicit",
    }
    assert loaded.config.max_line == 8192
    assert loaded.config.max_header_bytes == 65536
    assert loaded.config.max_body == 100 * 2**20
    assert {source.split(" ")[0] for source in loaded.sources.values()} == {"default"}


def test_log_levels_are_those_of_the_log():
    """The option accepts exactly the levels that the log has."""
    for level in log.LEVELS:
        assert load("--log-level", level).config.log_level == level
    assert OPTIONS["log_level"].value_type.metavar.split("|") == list(log.LEVELS)


def test_a_management_address_that_was_given_is_marked():
    """The server may do without the default address, but not without one that was given, even if it is the same."""
    assert load().config.admin == "127.0.0.1:8001"
    assert not load().config.admin_explicit
    assert load("--admin", "127.0.0.1:8001").config.admin_explicit
    assert load(EPOLLARD_ADMIN="[::]:8001").config.admin_explicit
    assert load(EPOLLARD_ADMIN="").config.admin == "127.0.0.1:8001"
    assert load("--admin", "off").config.admin == "off"
    with pytest.raises(sources.ConfigError, match=r"'8001' is not HOST:PORT.*, or off; did you mean 0\.0\.0\.0:8001"):
        load("--admin", "8001")


def test_the_names_of_an_option_follow_from_its_field():
    """One field gives the flag and the variable; the key in a file is the field's own name."""
    assert flag("max_header_bytes") == "--max-header-bytes"
    assert variable("max_header_bytes") == "EPOLLARD_MAX_HEADER_BYTES"

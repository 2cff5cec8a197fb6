"""The shared rules, character by character: what a token, a value, a list may hold. No socket, no server."""

import string

import pytest

from epollard.protocol import grammar

TOKEN_CHARACTERS = set("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)
VALUE_CHARACTERS = {"\t", *map(chr, range(32, 127)), *map(chr, range(128, 256))}
EVERY = [chr(number) for number in (*range(0x180), 0x2028, 0xFF41, 0x1D7D8)]


def test_a_token_has_these_characters_and_no_others():
    """RFC 9110 5.6.2. What only looks like one of them, in another script, is none of them."""
    assert {character for character in EVERY if grammar.TOKEN.fullmatch(character)} == TOKEN_CHARACTERS
    assert not grammar.TOKEN.fullmatch("")


def test_a_value_has_these_characters_and_no_others():
    """RFC 9110 5.5: no control character except the tab, and nothing that is not one byte."""
    assert {character for character in EVERY if grammar.VALUE.fullmatch(character)} == VALUE_CHARACTERS
    assert grammar.VALUE.fullmatch("")


def test_both_forms_of_the_rule_for_values_agree():
    """A head is judged as a whole by the bytes that no value may have: exactly those that the expression refuses."""
    assert {chr(byte) for byte in grammar.CONTROLS} == {chr(byte) for byte in range(256)} - VALUE_CHARACTERS


def test_digits_are_ascii():
    """A digit of another script is no Content-Length (RFC 9110 8.6)."""
    assert {character for character in EVERY if grammar.DIGITS.fullmatch(character)} == set(string.digits)
    assert 10**grammar.LENGTH_DIGITS < 2**63  # what a file may have (off_t)


def test_no_field_of_the_connection_is_a_trailer():
    """RFC 9110 6.5.1, 7.6.1: what a head may not get from an application, a trailer may not get from anybody."""
    assert grammar.HOP_BY_HOP < grammar.FORBIDDEN_TRAILERS
    assert all(name == name.lower() for name in grammar.FORBIDDEN_TRAILERS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([""], []),
        (["a"], ["a"]),
        (["a,b"], ["a", "b"]),
        ([" a\t, ,,b c ,"], ["a", "b c"]),
        (["b, a", "c"], ["b", "a", "c"]),
        (["a;q=1, A"], ["a;q=1", "A"]),
    ],
)
def test_a_list_has_its_elements_in_order(values: list[str], expected: list[str]):
    """RFC 9110 5.6.1: empty elements and white space around them mean nothing; fields of one name are one list (5.3)."""
    assert grammar.elements(values) == expected


def test_errors_carry_what_is_sent():
    """A violation has its status, or its close code, where it is found."""
    refused, failed = grammar.ProtocolError(400, "bad Host"), grammar.FrameError(1002, "reserved bit")
    assert (refused.status, refused.reason, refused.args) == (400, "bad Host", (400, "bad Host"))
    assert (failed.code, failed.reason, failed.args) == (1002, "reserved bit", (1002, "reserved bit"))

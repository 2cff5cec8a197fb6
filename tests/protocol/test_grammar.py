"""The shared rules, character by character: tokens, values, digits, lists. No socket, no server."""

import string

import pytest

from epollard.protocol import grammar

TOKEN_CHARACTERS = set("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)
VALUE_CHARACTERS = {"\t", *map(chr, range(32, 127)), *map(chr, range(128, 256))}
EVERY = [chr(number) for number in (*range(0x180), 0x2028, 0xFF41, 0x1D7D8)]


def test_a_token_has_these_characters_and_no_others():
    """RFC 9110 5.6.2. A similar character of another script is refused."""
    assert {character for character in EVERY if grammar.TOKEN.fullmatch(character)} == TOKEN_CHARACTERS
    assert not grammar.TOKEN.fullmatch("")


def test_a_value_has_these_characters_and_no_others():
    """RFC 9110 5.5: no control character except the tab, and no character beyond one byte."""
    assert {character for character in EVERY if grammar.VALUE.fullmatch(character)} == VALUE_CHARACTERS
    assert grammar.VALUE.fullmatch("")


def test_both_forms_of_the_rule_for_values_agree():
    """CONTROLS, by which whole heads are judged, are exactly the bytes that the expression refuses."""
    assert {chr(byte) for byte in grammar.CONTROLS} == {chr(byte) for byte in range(256)} - VALUE_CHARACTERS


def test_digits_are_ascii():
    """Digits of other scripts make no Content-Length (RFC 9110 8.6)."""
    assert {character for character in EVERY if grammar.DIGITS.fullmatch(character)} == set(string.digits)
    assert 10**grammar.LENGTH_DIGITS < 2**63  # the largest file (off_t)


def test_no_field_of_the_connection_is_a_trailer():
    """A field that an application may not send in a head is not a trailer either (RFC 9110 6.5.1, 7.6.1)."""
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
    """Empty elements and white space around elements are ignored (RFC 9110 5.6.1); fields with one name are one list (5.3)."""
    assert grammar.elements(values) == expected


def test_errors_carry_their_status():
    """The status or close code of a violation is chosen where the violation is found."""
    refused, failed = grammar.ProtocolError(400, "bad Host"), grammar.FrameError(1002, "reserved bit")
    assert (refused.status, refused.reason, refused.args) == (400, "bad Host", (400, "bad Host"))
    assert (failed.code, failed.reason, failed.args) == (1002, "reserved bit", (1002, "reserved bit"))

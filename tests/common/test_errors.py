"""Errors for the user stay readable, whatever stands in them."""

import pickle

from nearstep.common.errors import ConfigError, DataError, cut


def test_lines_and_messages_are_cut_in_their_middle():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefgh", 6) == "abc… 2 characters left out …fgh"
    error = DataError("short\n" + "a" * 1_500 + "b" * 1_500)
    assert str(error).splitlines()[0] == "short"
    assert str(error).splitlines()[1] == "a" * 1000 + "… 1,000 characters left out …" + "b" * 1000
    many = str(ConfigError("\n".join(f"line {number}" for number in range(100_000))))
    assert many.startswith("line 0\n")
    assert many.endswith("line 99999")
    assert len(many) < 20_100


def test_an_error_travels_between_processes_as_it_is():
    error = DataError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a\nb"
    assert error.args == ("a\nb",)

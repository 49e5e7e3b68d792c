"""Reading ahead: the same batches, one of them early; errors come where they belong, and the thread ends."""

import threading
from itertools import count

import pytest

from nearstep.common.errors import DataError
from nearstep.data.ahead import read_ahead
from nearstep.data.prompt_stream import PromptStream
from nearstep.data.stream import stream_of
from tests.data.test_stream import numbered, stream_source

PATIENCE_SECONDS = 30  # for what must happen at once; a test that waits so long has failed


def readers():
    """The threads that read prompts."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("prompts")]


def test_the_same_batches_in_the_same_order():
    assert list(read_ahead(iter(range(50)))) == list(range(50))
    assert list(read_ahead(iter(()))) == []
    assert not readers()


def test_a_batch_is_read_while_the_one_before_it_is_in_use():
    is_begun, may_go_on = threading.Event(), threading.Event()

    def batches():
        yield 1
        is_begun.set()
        assert may_go_on.wait(PATIENCE_SECONDS)
        yield 2

    ahead = read_ahead(batches())
    assert next(ahead) == 1
    assert is_begun.wait(PATIENCE_SECONDS)  # batch 2 is begun, and nobody has asked for it
    may_go_on.set()
    assert list(ahead) == [2]


def test_never_more_than_one_ahead():
    read = []

    def batches():
        for number in count(1):
            read.append(number)
            yield number

    ahead = read_ahead(batches())
    for number in range(1, 20):
        assert next(ahead) == number
        assert read in (list(range(1, number + 1)), list(range(1, number + 2)))
    ahead.close()
    assert read[-1] <= 20


def test_an_error_comes_in_place_of_its_batch():
    def batches():
        yield 1
        yield 2
        raise DataError("row 7 of 'mine' is bad. Take it out.")

    ahead = read_ahead(batches())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match=r"^row 7 of 'mine' is bad. Take it out.$"):
        next(ahead)
    assert not readers()
    assert list(ahead) == []


def test_closing_early_ends_the_thread():
    ahead = read_ahead(iter(count()))
    assert next(ahead) == 0
    assert len(readers()) == 1
    ahead.close()
    assert not readers()


def test_a_loop_that_raises_ends_the_thread():
    def loop():
        for number in read_ahead(iter(count())):
            assert readers()
            assert 1 / (3 - number)

    with pytest.raises(ZeroDivisionError):
        loop()
    assert not readers()


def test_streams_read_in_the_thread_and_nothing_beyond_the_last_batch(monkeypatch):
    read, threads = [], set()
    prompts_of_rows = PromptStream.prompts

    def watched(self, number):
        for prompt in prompts_of_rows(self, number):
            read.append(prompt)
            threads.add(threading.current_thread().name.partition("_")[0])
            yield prompt

    monkeypatch.setattr(PromptStream, "prompts", watched)
    source = stream_source(stream_of(numbered(100), "mine", "train"), batch_size=4)
    assert [len(batch.inputs) for batch in source.batches(after=3, until=6)] == [4, 4, 4]
    assert len(read) == 24 + 1  # the buffer of one holds the next
    assert threads == {"prompts"}

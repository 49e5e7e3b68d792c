"""A server on loopback that answers as an OpenAI-compatible one would, well or badly."""

import json
import re
import socket

from tests.rewards.test_remote import Scripted

USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def chat(content, *, finish="stop", usage=USAGE, logprobs=None):
    """A chat completion as status, headers and body."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
    if logprobs is not None:
        top = [{"token": token, "logprob": logprob} for token, logprob in logprobs]
        choice["logprobs"] = {"content": [{"token": content, "top_logprobs": top}]}
    return 200, {}, json.dumps({"choices": [choice], **({} if usage is None else {"usage": usage})}).encode()


def preferring(answer, **more):
    return chat(json.dumps({"preferred": answer}), **more)


def shown(question):
    """The two answers that a question shows, in its order."""
    text = question["messages"][-1]["content"]
    return re.search(r"<answer_A>\n(.*)\n</answer_A>\n\n<answer_B>\n(.*)\n</answer_B>", text, re.S).groups()


def longer(handler, question):
    """A judge without any bias for a place: it likes the longer text."""
    first, second = map(len, shown(question))
    handler.answer(*preferring("A" if first > second else "B" if second > first else "tie"))


def broken_off(handler, question):
    handler.connection.shutdown(socket.SHUT_RDWR)


class Stub(Scripted):
    """`url` is what a judge is named by."""

    def __init__(self, *script):
        super().__init__(*script)
        self.url = f"http://127.0.0.1:{self.port}/v1#stub"

"""What a chat template puts behind a reply of the assistant."""

from collections.abc import Callable

from nearstep.common.messages import Message

REPLY = "nearstep-reply"


def turn_end(render: Callable[[list[Message]], str]) -> str | None:
    """The text behind the last reply, `render` being the template; None where the template leaves the reply out.

    What `render` raises is passed on.
    """
    probe: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": REPLY}]
    _, found, end = render(probe).rpartition(REPLY)
    return end if found else None

"""Runs as a program of its own: says line by line whether a text gives an answer that is mathematically right.

A line in is a JSON object {"answers": [text, …], "text": text}; a line out is true, false, or null where no answer can
be read as mathematics. Comparing expressions can take for ever and all memory: the caller ends this process then.
"""

import json
import logging
import re
import resource
import sys

MEMORY_BYTES = 4 << 30
# What tells a written solution from a bare expression; without it, 3\\sqrt{13} would be read as 3.
_MARKED = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[|####|answer", re.IGNORECASE)


def main() -> None:
    """Answer every line until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()  # the library warns that its own time limits are off
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answers = [a if _MARKED.search(a) else rf"\boxed{{{a}}}" for a in request["answers"]]
        right = [read for answer in answers if (read := parse(answer, parsing_timeout=None))]
        given = parse(request["text"], parsing_timeout=None) if right else []
        equal = any(verify(answer, given, timeout_seconds=None) for answer in right)
        print(json.dumps(equal if right else None), flush=True)


if __name__ == "__main__":
    main()

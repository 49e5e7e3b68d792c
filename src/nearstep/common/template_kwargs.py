"""What a setting or a row may hand to a chat template beside messages and tools, such as enable_thinking."""

import json
from collections.abc import Mapping

COLUMN = "chat_template_kwargs"

# Arguments of apply_chat_template, and the variable of every template: they are given here.
OWN = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip


def template_kwargs(value: object) -> dict[str, object]:
    """The keywords in a mapping, or in the JSON of one; none in None. Raises ValueError, which says what is needed."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('a mapping such as {"enable_thinking": false}') from None
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise ValueError('a mapping such as {"enable_thinking": false}')
    if own := sorted(OWN & value.keys()):
        raise ValueError(f"a mapping without {', '.join(own)}: nearstep gives these itself")
    return dict(value)


def row_kwargs(value: object) -> dict[str, object]:
    """Those of a row. `datasets` fills in None for keys that only other rows have; raises as `template_kwargs`."""
    return {name: given for name, given in template_kwargs(value).items() if given is not None}

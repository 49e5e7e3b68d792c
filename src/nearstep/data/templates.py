"""Chat templates by name, for tokenizers that have none or shall follow another."""

import copy
import re
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, shorten
from nearstep.config.data import TEMPLATE_SUFFIX
from nearstep.data.tokenise import PromptStyle

_TURNS = "{% for message in messages %}"
_END = "{% endfor %}{% if add_generation_prompt %}"

TEMPLATES: dict[str, str] = {
    "chatml": (
        _TURNS + "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        + _END + "<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token or '' }}" + _TURNS + "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>"
        + _END + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "alpaca": (
        _TURNS + "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
        "{% elif message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token or '' }}\n\n"
        "{% else %}### Instruction:\n{{ message['content'] }}\n\n{% endif %}"
        + _END + "### Response:\n{% endif %}"
    ),
}  # fmt: skip
# What a template writes and a tokenizer that was made for it knows as one token each.
MARKS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "alpaca": (),
}


def style_of(prompt_type: str) -> PromptStyle:
    """What happens to prompts under a prompt_type: the name of a template means that it is used."""
    style: dict[str, PromptStyle] = {"none": "none", "raw": "raw", "raw_bos": "raw_bos"}
    return style.get(prompt_type, "chat")


def with_template(tokenizer: PreTrainedTokenizerBase, prompt_type: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the template that prompt_type names, a copy of it then; else the tokenizer itself.

    The template goes with the tokenizer into the folder of the policy. Raises ConfigError for a file that cannot be
    read.
    """
    template = _template(prompt_type)
    if template is None:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def template_notes(tokenizer: PreTrainedTokenizerBase, prompt_type: str) -> list[str]:
    """What the user should know about tokenizer and template, one sentence each."""
    marks = MARKS.get(prompt_type, ())
    unknown = [mark for mark in marks if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) > 1]
    if not unknown:
        return []
    return [
        f"The marks of prompt_type {prompt_type} are no single tokens of this tokenizer ({', '.join(unknown)}): "
        "the policy has to learn them letter by letter."
    ]


def unused_keywords(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> list[str]:
    """A sentence for keywords of chat_template_kwargs that the chat template does not read."""
    written = str(tokenizer.chat_template or "")
    unread = [name for name in dict.fromkeys(names) if not re.search(rf"\b{re.escape(name)}\b", written)]
    if not unread:
        return []
    return [f"The chat template does not read {shorten(', '.join(unread))} of chat_template_kwargs."]


def _template(prompt_type: str) -> str | None:
    if not prompt_type.endswith(TEMPLATE_SUFFIX):
        return TEMPLATES.get(prompt_type)
    try:
        return Path(prompt_type).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_type = {prompt_type!r} names a template that cannot be read: {error}") from error

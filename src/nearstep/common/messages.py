"""What a prompt is before it is tokenised: text, or the messages of a conversation.

Standard library only: processes that run reward functions know prompts and need no torch.
"""

from typing import TypeAlias

Message: TypeAlias = dict[str, object]
PromptInput: TypeAlias = str | list[Message]

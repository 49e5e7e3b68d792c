"""Whether the data has the columns that a privileged critic is to read, and what it will read, for the user."""

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError, cut
from nearstep.common.spelling import nearest
from nearstep.config.ppo import PPOConfig
from nearstep.data.run_prompts import RunPrompts
from nearstep.models.roles import Critic, Critics
from nearstep.training.critic_text import CriticText

SHOWN = 400  # characters


def check_critic_columns(config: PPOConfig, run_prompts: RunPrompts) -> None:
    """Raise DataError for critic_columns that no data set of the run has beside its prompts."""
    there = run_prompts.prompts.columns
    for name in config.critic_columns:
        if name not in there:
            near = nearest(name, there)
            meant = f"did you mean {near}?" if near else "Name one that is there, or give it that name with columns"
            raise DataError(
                f"critic_columns: {run_prompts.prompts.label} has no column {name!r} beside its prompts; {meant} "
                f"There is {', '.join(map(repr, there)) or 'none'}."
            )


def critic_text_of(
    config: PPOConfig, tokenizer: PreTrainedTokenizerBase, critic: Critic | Critics | None, run_prompts: RunPrompts
) -> tuple[CriticText | None, list[str]]:
    """What a privileged critic reads, and a sentence that shows it around the first prompt; None without one."""
    critic_text = CriticText.of(config, tokenizer, critic)
    if critic_text is None:
        return None, []
    (text,) = critic_text.shown(run_prompts.prompts.take([0], [0]))
    return critic_text, [
        f"The critic reads what the policy does not, around the first prompt (…): {cut(text, SHOWN)!r}"
    ]

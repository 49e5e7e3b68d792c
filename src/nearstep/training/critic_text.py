"""What a privileged critic reads in place of each prompt: text from the data set, and the prompt within it.

Source: BPCO (2608.23566), second hand.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.algorithm.ragged import row_numbers
from nearstep.common.errors import TrainingError
from nearstep.config.critic_text import PROMPT, CriticTextSettings
from nearstep.config.ppo import PPOConfig
from nearstep.models.limits import Limits
from nearstep.models.roles import Critic, Critics, inner_model
from nearstep.types import CriticLeads, Prompts, Rollout


@dataclass(frozen=True)
class CriticText:
    """Writes columns of the data set around prompts, as tokens of the policy, which are the critic's too.

    A prompt keeps the ids that the policy read; its BOS stays first. Where a row would have more tokens than the critic
    can read, or its text more than are allowed, the end of the text is left out.
    """

    columns: tuple[str, ...]
    before: str  # the prompt, with {NAME} in place of columns
    behind: str
    tokenizer: PreTrainedTokenizerBase
    response_length: int
    most_tokens: int | None  # of the text
    positions: int | None  # of the critic; None where there is no limit

    @staticmethod
    def of(
        config: PPOConfig, tokenizer: PreTrainedTokenizerBase, critic: Critic | Critics | None
    ) -> "CriticText | None":
        """As the settings say; None where the critic reads what the policy does."""
        if critic is None or not config.critic_columns:
            return None
        model, (before, behind) = inner_model(critic.members[0].model), texts_around_prompt(config)
        return CriticText(
            config.critic_columns,
            before,
            behind,
            tokenizer,
            config.response_length,
            config.critic_text_tokens,
            Limits.of(model.config).positions if isinstance(model, PreTrainedModel) else None,
        )

    def leads(self, prompts: Prompts | None, rollout: Rollout) -> CriticLeads:
        """The tokens before the first action of each row. Raises TrainingError without the prompts."""
        if prompts is None:
            raise TrainingError(
                "critic_columns: the critic reads columns of the prompts, and none were given: pass them, "
                "make_experience(rollout, scores, recipe, state, prompts=prompts)"
            )
        written = self._written(prompts)
        leads, cut = [], []
        episodes = row_numbers(rollout.segment_counts).tolist()
        rows = zip(episodes, rollout.prompt_ids(), rollout.completion_ids(), strict=True)
        for episode, ids, said in rows:
            before, behind = written[episode]
            lead, left_out = self._lead(before, behind, ids, max(self.response_length, len(said)))
            leads.append(lead)
            cut.append(left_out)
        if any(cut):
            warnings.warn(
                "the text that the critic reads from critic_columns is too long in some rows: its end is left out "
                "(val/critic_text_cut is the share of such rows)",
                stacklevel=2,
            )
        device = rollout.tokens.device
        return CriticLeads(
            torch.tensor([token for lead in leads for token in lead], dtype=rollout.tokens.dtype, device=device),
            torch.tensor([len(lead) for lead in leads], device=device),
            torch.tensor(cut, device=device),
        )

    def shown(self, prompts: Prompts) -> list[str]:
        """The texts around each prompt, with … for the prompt."""
        return [f"{before}…{behind}" for before, behind in self._texts(prompts)]

    def _lead(self, before: list[int], behind: list[int], prompt: list[int], response: int) -> tuple[list[int], bool]:
        """The lead of a row, and whether something was left out of its text."""
        limits = [] if self.most_tokens is None else [self.most_tokens]
        if self.positions is not None:
            limits.append(max(0, self.positions - len(prompt) - response))
        most = min(limits, default=len(before) + len(behind))
        kept = before[: max(0, most - len(behind))]
        end = behind[: most - len(kept)]
        bos = self.tokenizer.bos_token_id
        first = prompt[:1] if bos is not None and prompt[:1] == [bos] else []
        return [*first, *kept, *prompt[len(first) :], *end], len(kept) + len(end) < len(before) + len(behind)

    def _written(self, prompts: Prompts) -> list[tuple[list[int], list[int]]]:
        """Token ids before and behind the prompt of each episode; each text is tokenised once."""
        texts = self._texts(prompts)
        different = list(dict.fromkeys(text for pair in texts for text in pair if text))
        ids = self.tokenizer(different, add_special_tokens=False)["input_ids"] if different else []
        known: dict[str, list[int]] = {"": [], **dict(zip(different, ids, strict=True))}
        return [(known[before], known[behind]) for before, behind in texts]

    def _texts(self, prompts: Prompts) -> list[tuple[str, str]]:
        places = re.compile("|".join(re.escape(f"{{{name}}}") for name in self.columns))
        found = []
        for row in range(len(prompts)):
            cells = {f"{{{name}}}": _text(prompts.columns[name][row]) for name in self.columns}
            before, behind = (
                places.sub(lambda place, cells=cells: cells[place.group()], text)  # type: ignore[misc]
                for text in (self.before, self.behind)
            )
            found.append((before, behind))
        return found


def texts_around_prompt(config: CriticTextSettings) -> tuple[str, str]:
    """The texts before and behind the prompt, with {NAME} in place of columns."""
    template = config.critic_template
    if template is None:
        template = "".join(f"{name}: {{{name}}}\n" for name in config.critic_columns) + "\n" + PROMPT
    before, _, behind = template.partition(PROMPT)
    return before, behind


def _text(value: object) -> str:
    """A cell as text: lists of texts line by line, what is no text as JSON, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)

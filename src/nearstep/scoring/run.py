"""`nearstep score`: every row of a file goes through the rewards as in training, its scores into another."""

import os
from contextlib import closing
from pathlib import Path

from nearstep.casting import DTYPES
from nearstep.config_judging import ScoreOptions
from nearstep.data.table import Table
from nearstep.judging import Loading, judge_entries, load_reward_model, make_judges, on_error, reward_tokenizer
from nearstep.models.load import load_tokenizer
from nearstep.reports.records import JsonLines, Record, score_fields
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.source import Rewards
from nearstep.scale.torch_backend import torch_backend
from nearstep.scoring.episodes import Episodes, read_episodes
from nearstep.scoring.summary import Summary
from nearstep.types import Scores


def score_file(options: ScoreOptions) -> Summary:
    """Score every row and write one line for each; what was written at the place before is replaced at the end.

    Raises DataError, ModelError or RewardError as training would.
    """
    assert options.input is not None
    assert options.model_name_or_path is not None
    tokenizer = load_tokenizer(options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    table, batches = read_episodes(options.input, tokenizer, batch_size=options.batch_size)
    loading = Loading(
        DTYPES[options.dtype], options.trust_remote_code, options.bf16, options.max_tokens_per_microbatch,
        torch_backend(use_cpu=options.use_cpu).place, options.seed,
    )  # fmt: skip
    entries = judge_entries(options, columns=batches[0].prompts.columns)
    judges = make_judges(
        options,
        [(entry, load_reward_model(entry, loading)) for entry in entries],
        lambda model: reward_tokenizer(model, None, tokenizer),
        TokenizerIdentity.of(tokenizer),
        loading,
    )
    rewards = Rewards(judges, tokenizer, weights=options.reward_weights, on_error=on_error(options))
    summary, output = Summary(rewards.names), Path(options.output)
    unfinished = output.with_name(output.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    with closing(rewards), closing(JsonLines(unfinished)) as file:
        for episodes in batches:
            scores = rewards(episodes.prompts, episodes.rollout)
            file.write(_lines(episodes, scores, table))
            summary.add(episodes, scores)
    os.replace(unfinished, output)
    return summary


def _lines(episodes: Episodes, scores: Scores, table: Table) -> list[Record]:
    fields = score_fields(scores, episodes.rollout)
    return [
        {
            "row": episodes.first + row,
            "place": table.position(episodes.first + row),
            "episode": episodes.prompts.episodes[row],
            **judged,
        }
        for row, judged in enumerate(fields)
    ]

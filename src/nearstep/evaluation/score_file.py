"""`nearstep score`: every row of a file goes through the rewards as in training, its scores into another."""

import os
from contextlib import closing
from pathlib import Path

from nearstep.config.judge_files import ScoreOptions
from nearstep.data.table import Table
from nearstep.evaluation.episodes import Episodes, read_episodes
from nearstep.evaluation.summary import ScoreSummary
from nearstep.models.dtypes import DTYPES
from nearstep.models.tokenizers import load_tokenizer
from nearstep.reports.records import JsonLines, Record, score_fields
from nearstep.rewards.build import RewardModelOptions, load_sources, on_error, reward_specs
from nearstep.rewards.combine import Rewards
from nearstep.scale.torch_backend import torch_backend
from nearstep.types import Scores


def score_file(options: ScoreOptions) -> ScoreSummary:
    """Score every row and write one line for each; what was written at the place before is replaced at the end.

    Raises DataError, ModelError or RewardError as training would.
    """
    assert options.input is not None
    assert options.model_name_or_path is not None
    tokenizer = load_tokenizer(options.model_name_or_path, trust=options.trust)
    episode_file = read_episodes(options.input, tokenizer, batch_size=options.batch_size)
    model_options = RewardModelOptions(
        DTYPES[options.dtype],
        options.trust,
        options.bf16,
        options.max_tokens_per_microbatch,
        torch_backend(use_cpu=options.use_cpu).place,
        options.seed,
    )
    specs = reward_specs(options, columns=episode_file.columns)
    sources = load_sources(options, specs, tokenizer, model_options)
    rewards = Rewards(sources, tokenizer, weights=options.reward_weights, on_error=on_error(options))
    summary, output = ScoreSummary(rewards.names), Path(options.output)
    unfinished = output.with_name(output.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    with closing(rewards), closing(JsonLines(unfinished)) as file:
        for episodes in episode_file.batches():
            scores = rewards(episodes.prompts, episodes.rollout)
            file.write(_lines(episodes, scores, episode_file.table))
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
            **fields_of_row,
        }
        for row, fields_of_row in enumerate(fields)
    ]

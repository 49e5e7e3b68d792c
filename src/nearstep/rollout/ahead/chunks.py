"""Rows that are generated a few tokens at a time: between two chunks new weights may come, rows enter, others leave."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nearstep.common.errors import TrainingError
from nearstep.common.messages import PromptInput, Prompts
from nearstep.rollout.ahead.messages import FinishedRow
from nearstep.rollout.engine import GenerationSettings, RolloutEngine, engine_name, play, row_limits
from nearstep.types import Rollout


@dataclass
class RowUnderWay:
    """A prompt and as much of its response as there is, in pieces as they were generated."""

    episode: int
    prompt: list[int]
    input: PromptInput
    columns: dict[str, object]
    most: int  # tokens of the response
    pieces: list[FinishedRow] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # of prompt and response

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)

    @property
    def length(self) -> int:
        """Tokens of the response so far."""
        return len(self.ids) - len(self.prompt)

    def whole(self) -> FinishedRow:
        """All pieces as one row."""
        first, last = self.pieces[0], self.pieces[-1]
        if len(self.pieces) == 1:
            return first
        tops = [(piece.top_ids, piece.top_logprobs) for piece in self.pieces]
        is_action = torch.ones(len(self.ids), dtype=torch.bool)
        is_action[: len(self.prompt)] = False
        return replace(
            last,
            tokens=torch.tensor(self.ids),
            is_action=is_action,
            logprobs=torch.cat([piece.logprobs for piece in self.pieces]),
            versions=torch.cat([piece.versions for piece in self.pieces]),
            top_ids=None if first.top_ids is None else torch.cat([ids for ids, _ in tops if ids is not None]),
            top_logprobs=None
            if first.top_logprobs is None
            else torch.cat([logprobs for _, logprobs in tops if logprobs is not None]),
        )


@dataclass
class ChunkedGeneration:
    """Generates rows in the order in which they came, at most `max_rows` at a time.

    An engine that can go on with a row is given `chunk_length` tokens at a time, and a row takes up new weights between
    two chunks: its keys and values are computed anew from its ids. Other engines are given whole rows.
    """

    engine: RolloutEngine
    settings: GenerationSettings
    chunk_length: int
    max_rows: int
    rows: list[RowUnderWay] = field(default_factory=list)

    def add(self, prompts: Prompts) -> None:
        """Take prompts in, behind those that wait."""
        most = row_limits(prompts.ids, self.settings.response_length, self.settings.max_length)
        for number, episode in enumerate(prompts.episodes):
            columns = {name: column[number] for name, column in prompts.columns.items()}
            self.rows.append(RowUnderWay(episode, prompts.ids[number], prompts.inputs[number], columns, most[number]))

    def abandon(self, episodes: Sequence[int]) -> None:
        """Forget rows."""
        unwanted = set(episodes)
        self.rows = [row for row in self.rows if row.episode not in unwanted]

    def beginning(self) -> list[int]:
        """Episodes whose first token comes in the next chunk."""
        return [row.episode for row in self.rows[: self.max_rows] if row.length == 0]

    def step(self, version: int) -> Iterator[FinishedRow]:
        """Generate a chunk of the oldest rows with the weights of `version`; those that have ended by it."""
        live = self.rows[: self.max_rows]
        can = self.engine.capabilities()
        settings = self.settings
        if can.goes_on and can.limits:
            limits = tuple(min(self.chunk_length, row.most - row.length) for row in live)
            settings = replace(settings, limits=limits, begun=tuple(row.length for row in live))
        columns = {name: [row.columns[name] for row in live] for name in (live[0].columns if live else {})}
        prompts = Prompts(
            [list(row.ids) for row in live], [row.input for row in live], columns, [row.episode for row in live]
        )
        rollout = play(self.engine, prompts, settings, version=version)
        if rollout.episodes is not None or rollout.model_inputs is not None:
            raise TrainingError(
                f"engine {engine_name(self.engine)} gave episodes of several rows, or inputs beside tokens, which do "
                "not come from another process yet. Use max_staleness = 0"
            )
        ended = set()
        for row, piece in zip(live, pieces_of(rollout, prompts.episodes), strict=True):
            row.pieces.append(piece)
            row.ids = piece.tokens.tolist()
            if piece.finished or settings.begun is None or row.length >= row.most:
                ended.add(row.episode)
                yield row.whole()
        self.rows = [row for row in self.rows if row.episode not in ended]


def pieces_of(rollout: Rollout, episodes: Sequence[int]) -> Iterator[FinishedRow]:
    """The rows of a rollout, one by one, on the CPU."""
    tokens = _by_row(rollout.tokens, rollout.row_lengths)
    is_action = _by_row(rollout.is_action, rollout.row_lengths)
    counts = rollout.action_counts
    logprobs, versions = _by_row(rollout.logprobs, counts), _by_row(rollout.versions, counts)
    tops: list[tuple[Tensor, Tensor] | tuple[None, None]] = [(None, None)] * len(episodes)
    if rollout.top is not None:
        tops = list(zip(_by_row(rollout.top.ids, counts), _by_row(rollout.top.logprobs, counts), strict=True))
    for row, (episode, finished) in enumerate(zip(episodes, rollout.finished.tolist(), strict=True)):
        yield FinishedRow(episode, finished, tokens[row], is_action[row], logprobs[row], versions[row], *tops[row])


def _by_row(values: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return torch.split(values.cpu(), lengths.tolist())

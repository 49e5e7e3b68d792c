"""What there is to learn: examples to train on, examples to report on, and the objective that fits them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch

from nearstep.common.errors import DataError
from nearstep.config.reward_model import RewardConfig
from nearstep.data.pairs import pairs_of
from nearstep.data.sources import DataSource, evaluation_sources, tables_of, training_sources
from nearstep.reward_modeling.encoding import Compared, LeftOutRows, TextEncoder, compare
from nearstep.reward_modeling.examples import Comparison, Grade
from nearstep.reward_modeling.objective import Objective, Pairwise, Regression
from nearstep.reward_modeling.scored_texts import Scored, TextsToScore, comparisons_of, grades_of, score
from nearstep.reward_modeling.scoring_rewards import ScoringRewards
from nearstep.reward_modeling.splitting import hold_out
from nearstep.reward_modeling.texts import texts_from_nothing, texts_to_score_of
from nearstep.reward_modeling.writing import Writer
from nearstep.scale.backend import Backend


@dataclass(frozen=True)
class Sources:
    """Data that the user passed as objects or names; None where the settings name it."""

    train: object = None
    held_out: object = None


@dataclass(frozen=True)
class TrainingExamples:
    """Everything that the fit and the report read, ready as ids."""

    kind: str  # pairwise or regression
    unit: str  # of the examples: pairs, texts, or prompts with several answers
    objective: Objective[Any]
    train: Sequence[Comparison] | Sequence[Grade]
    held_out: Sequence[Comparison] | Sequence[Grade]
    names: list[str]  # of the data sets that have one, for the card
    sentences: list[str]

    @property
    def usual_epochs(self) -> float:
        """Passes over the data where the settings name no number."""
        return 1.0 if self.kind == "pairwise" else 3.0

    @property
    def watched(self) -> Sequence[Comparison] | Sequence[Grade]:
        """What is kept for the report, pair by pair, as the trainer evaluates it."""
        pairs = [pair for each in self.held_out if isinstance(each, Comparison) for pair in each.pairs()]
        return pairs or self.held_out


def encoded_examples(config: RewardConfig, sources: Sources) -> TrainingExamples | None:
    """Examples from comparisons that the user made of ids himself; None where the data is something else."""
    if not _is_encoded(sources.train):
        return None
    train: list[Comparison] = list(sources.train)
    if sources.held_out is None:
        examples, kept = hold_out(train, [str(each.rows[0]) for each in train], config.held_out_share, seed=config.seed)
    elif _is_encoded(sources.held_out):
        examples, kept = train, list(sources.held_out)
    else:
        raise DataError("train_dataset holds comparisons of ids and eval_dataset does not: give both alike")
    notes = [f"{len(train):,} comparisons of ids.", *held_out_sentences(len(kept), "comparisons")]
    return TrainingExamples("pairwise", "comparisons", pairwise(config), examples, kept, [], notes)


def _is_encoded(given: object) -> TypeGuard[Sequence[Comparison]]:
    return isinstance(given, Sequence) and len(given) > 0 and all(isinstance(each, Comparison) for each in given)


def pair_examples(config: RewardConfig, sources: Sources, encoder: TextEncoder) -> TrainingExamples:
    """Examples from preference pairs that the data itself holds. Raises DataError naming bad rows."""
    data_sources = training_sources(config, sources.train, wanted="data")
    train = _compared(config, data_sources, encoder)
    others = evaluation_sources(config, sources.held_out)
    if others is not None:
        held_out = _compared(config, others, encoder)
        examples, kept, notes = train.comparisons, held_out.comparisons, held_out.sentences
    else:
        examples, kept = hold_out(train.comparisons, train.prompts, config.held_out_share, seed=config.seed)
        notes = held_out_sentences(len(kept), "pairs")
    names = [data_source.name for data_source in data_sources if data_source.given is None]
    return TrainingExamples("pairwise", "pairs", pairwise(config), examples, kept, names, [*train.sentences, *notes])


def scored_examples(
    config: RewardConfig, sources: Sources, encoder: TextEncoder, rewards: ScoringRewards, writer: Writer
) -> TrainingExamples:
    """Examples from rewards of texts. Raises DataError naming bad rows, RewardError where a reward fails."""
    has_data = sources.train is not None or bool(config.dataset_name)
    data_sources = training_sources(config, sources.train, wanted="data") if has_data else []
    train = _scored(_texts(config, data_sources, writer), config, encoder, rewards, writer.backend)
    others = evaluation_sources(config, sources.held_out)
    kept = None if others is None else _scored(_texts(config, others, writer), config, encoder, rewards, writer.backend)
    names = [data_source.name for data_source in data_sources if data_source.given is None]
    if config.objective == "pairwise":
        return _ranked(config, train, kept, names)
    return _graded(config, train, kept, names)


def _ranked(
    config: RewardConfig, train: "_ScoredTexts", kept: "_ScoredTexts | None", names: list[str]
) -> TrainingExamples:
    """The better of every two answers to a prompt."""
    comparisons, keys = comparisons_of(train.scored, config.min_score_gap)
    if not comparisons:
        raise DataError(
            "no prompt has two answers whose scores differ by more than min_score_gap, so there are no pairs. Give "
            "several answers to a prompt (num_generations), or use objective = regression."
        )
    pairs = sum(len(each.labels) for each in comparisons)
    notes = [*train.sentences, f"Rewards tell {pairs:,} pairs of answers to {len(comparisons):,} prompts apart."]
    if kept is None:
        examples, held_out = hold_out(comparisons, keys, config.held_out_share, seed=config.seed)
        notes += held_out_sentences(len(held_out), "prompts")
    else:
        examples, (held_out, _) = comparisons, comparisons_of(kept.scored, config.min_score_gap)
        notes += kept.sentences
    # How far scores lie apart is told in the report; it is no margin that the user asked for.
    return TrainingExamples(
        "pairwise", "prompts", replace(pairwise(config), margins=0.0), examples, held_out, names, notes
    )


def _graded(
    config: RewardConfig, train: "_ScoredTexts", kept: "_ScoredTexts | None", names: list[str]
) -> TrainingExamples:
    """The score of every text."""
    grades, keys = grades_of(train.scored)
    notes = list(train.sentences)
    if kept is None:
        examples, held_out = hold_out(grades, keys, config.held_out_share, seed=config.seed)
        notes += held_out_sentences(len(held_out), "texts")
    else:
        examples, (held_out, _) = grades, grades_of(kept.scored)
        notes += kept.sentences
    targets = torch.tensor([grade.target for grade in examples], dtype=torch.float64)
    mean, deviation = targets.mean().item(), targets.std(correction=0).item()
    notes.append(f"{len(grades):,} texts have scores with mean {mean:.4g} and standard deviation {deviation:.4g}.")
    if deviation == 0:
        raise DataError(f"all {len(grades)} texts got the same score, {mean:g}: there is nothing to learn.")
    return TrainingExamples("regression", "texts", Regression(mean, deviation), examples, held_out, names, notes)


@dataclass(frozen=True)
class _ScoredTexts:
    scored: list[Scored]
    sentences: list[str]


def _texts(config: RewardConfig, data_sources: Sequence[DataSource], writer: Writer) -> list[TextsToScore]:
    if not data_sources:
        return [texts_from_nothing(writer)]
    return [texts_to_score_of(table, config, writer) for table in tables_of(config, data_sources)]


def _scored(
    several: Sequence[TextsToScore],
    config: RewardConfig,
    encoder: TextEncoder,
    rewards: ScoringRewards,
    backend: Backend,
) -> _ScoredTexts:
    found = _ScoredTexts([], [])
    for texts in several:
        rewards.check(texts.prompts_to_score[0].columns)
        scored, notes = score(texts, rewards, encoder, config, backend)
        found = _ScoredTexts(found.scored + scored, [*found.sentences, *texts.sentences, *notes])
    return found


def pairwise(config: RewardConfig) -> Pairwise:
    """The objective for pairs."""
    return Pairwise(config.label_smoothing, config.center_rewards_coefficient or 0.0, config.margin_coefficient)


def held_out_sentences(count: int, things: str) -> list[str]:
    """How many examples were kept from training."""
    if count == 0:
        return [f"No {things} are kept from training, so there will be no report."]
    return [f"{count:,} of these {things} are kept from training for the report."]


def _compared(config: RewardConfig, data_sources: Sequence[DataSource], encoder: TextEncoder) -> Compared:
    """The pairs of several data sets, one after the other."""
    found = Compared([], [], [])
    for table in tables_of(config, data_sources):
        pairs = pairs_of(table, dataset_format=config.dataset_format, on_bad_row=config.on_bad_row)
        found = found + compare(pairs, encoder, LeftOutRows(config.on_long_text, config.on_bad_row))
    return found

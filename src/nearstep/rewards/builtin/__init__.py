"""Reward functions that nearstep brings along. Their parameters are fields: LengthTarget(words=120).

They import their libraries and load their models when they are used; this package needs the standard library only.
"""

from nearstep.rewards.builtin.classifiers import Classifier, Entailment, LogicalConsistency, Sentiment, Toxicity
from nearstep.rewards.builtin.format import Json, JsonSchema, Regex, Tags
from nearstep.rewards.builtin.keywords import ForbiddenWords, Grounding, Keywords, Relevance
from nearstep.rewards.builtin.length_rewards import Brevity, Length, LengthTarget, OverlongPenalty
from nearstep.rewards.builtin.likelihood import Likelihood
from nearstep.rewards.builtin.maths import Arithmetic, MathAnswer, NumericAnswer
from nearstep.rewards.builtin.phrase_rewards import (
    CausalReasoning,
    CounterfactualReasoning,
    FairWording,
    Helpfulness,
    Honesty,
    Politeness,
    Safety,
)
from nearstep.rewards.builtin.programs import CodeExecution, CodeStyle, CodeSyntax, CodeTests
from nearstep.rewards.builtin.readability import Readability, ReadingGrade
from nearstep.rewards.builtin.reference import Bleu, Chrf, ContainsAnswer, ExactMatch, Meteor, Rouge
from nearstep.rewards.builtin.similarity import Bertscore, SemanticSimilarity
from nearstep.rewards.builtin.wording import Coherence, Conciseness, Diversity, Engagement, Fluency, RepetitionPenalty

__all__ = [
    "Arithmetic",
    "Bertscore",
    "Bleu",
    "Brevity",
    "CausalReasoning",
    "Chrf",
    "Classifier",
    "CodeExecution",
    "CodeStyle",
    "CodeSyntax",
    "CodeTests",
    "Coherence",
    "Conciseness",
    "ContainsAnswer",
    "CounterfactualReasoning",
    "Diversity",
    "Engagement",
    "Entailment",
    "ExactMatch",
    "FairWording",
    "Fluency",
    "ForbiddenWords",
    "Grounding",
    "Helpfulness",
    "Honesty",
    "Json",
    "JsonSchema",
    "Keywords",
    "Length",
    "LengthTarget",
    "Likelihood",
    "LogicalConsistency",
    "MathAnswer",
    "Meteor",
    "NumericAnswer",
    "OverlongPenalty",
    "Politeness",
    "Readability",
    "ReadingGrade",
    "Regex",
    "Relevance",
    "RepetitionPenalty",
    "Rouge",
    "Safety",
    "SemanticSimilarity",
    "Sentiment",
    "Tags",
    "Toxicity",
]

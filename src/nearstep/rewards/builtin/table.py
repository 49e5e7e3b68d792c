"""Which built-in rewards there are, by name."""

from nearstep.rewards import builtin
from nearstep.rewards.builtin.metadata import BuiltIn

# Groups as the documentation shows them.
GROUPS: dict[str, tuple[type[BuiltIn], ...]] = {
    "Length": (builtin.Length, builtin.LengthTarget, builtin.Brevity, builtin.OverlongPenalty),
    "Wording": (
        builtin.Conciseness,
        builtin.RepetitionPenalty,
        builtin.Diversity,
        builtin.Readability,
        builtin.ReadingGrade,
        builtin.Fluency,
        builtin.Coherence,
        builtin.Engagement,
        builtin.Likelihood,
    ),
    "Format": (builtin.Regex, builtin.Json, builtin.JsonSchema, builtin.Tags),
    "Words": (builtin.Keywords, builtin.ForbiddenWords, builtin.Relevance, builtin.Grounding),
    "Manner, by cue phrases": (
        builtin.Politeness,
        builtin.Helpfulness,
        builtin.Honesty,
        builtin.Safety,
        builtin.FairWording,
        builtin.CausalReasoning,
        builtin.CounterfactualReasoning,
    ),
    "Against a reference": (
        builtin.ExactMatch,
        builtin.ContainsAnswer,
        builtin.Bleu,
        builtin.Chrf,
        builtin.Rouge,
        builtin.Meteor,
        builtin.SemanticSimilarity,
        builtin.Bertscore,
    ),
    "Mathematics": (builtin.NumericAnswer, builtin.MathAnswer, builtin.Arithmetic),
    "Code (Python)": (builtin.CodeSyntax, builtin.CodeStyle, builtin.CodeExecution, builtin.CodeTests),
    "Scored by a classifier": (
        builtin.Classifier,
        builtin.Sentiment,
        builtin.Toxicity,
        builtin.Entailment,
        builtin.LogicalConsistency,
    ),
}
BUILT_INS: dict[str, type[BuiltIn]] = {vars(kind)["__name__"]: kind for group in GROUPS.values() for kind in group}

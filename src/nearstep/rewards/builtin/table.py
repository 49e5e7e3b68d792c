"""Which built-in rewards there are, by name and in groups as the documentation shows them."""

from nearstep.rewards import builtin
from nearstep.rewards.builtin.metadata import BuiltIn, name_of

_NAMES = {
    "Length": "length length_target brevity overlong_penalty",
    "Wording": "conciseness repetition_penalty diversity readability reading_grade fluency coherence engagement "
    "likelihood",
    "Format": "regex json json_schema tags",
    "Words": "keywords forbidden_words relevance grounding",
    "Manner, by cue phrases": "politeness helpfulness honesty safety fair_wording causal_reasoning "
    "counterfactual_reasoning",
    "Against a reference": "exact_match contains_answer bleu chrf rouge meteor semantic_similarity bertscore",
    "Mathematics": "numeric_answer math_answer arithmetic",
    "Code (Python)": "code_syntax code_style code_execution code_tests",
    "Scored by a classifier": "classifier sentiment toxicity entailment logical_consistency",
}
_KINDS: dict[str, type[BuiltIn]] = {name_of(kind): kind for kind in map(vars(builtin).__getitem__, builtin.__all__)}

GROUPS = {group: tuple(_KINDS[name] for name in names.split()) for group, names in _NAMES.items()}
BUILT_INS = {name_of(kind): kind for kinds in GROUPS.values() for kind in kinds}

"""What stands here for the names of reward functions in AlignTune, and why where nothing does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counterpart:
    """What to use instead of a reward of another library: specs of built-ins (none where none can do it), and why."""

    here: tuple[str, ...]
    why: str

    @property
    def sentence(self) -> str:
        """Both in a sentence."""
        return f"use {' or '.join(self.here)}: {self.why}" if self.here else self.why


# Of AlignTune's names those that are no built-in here, or measure something else here.
COUNTERPARTS: dict[str, Counterpart] = {
    "context_relevance": Counterpart(("relevance:to=context",), "the share of its content words that is taken up."),
    "instruction_following": Counterpart(
        ("regex", "json_schema", "tags", "keywords", "length"),
        "whether an instruction was followed is checked by what it asked for; a constant ½ where none was given is no "
        "reward. For free instructions take a reward model.",
    ),
    "temporal_consistency": Counterpart(
        ("entailment:context=previous_texts",), "whether earlier texts support it is a question for an inference model."
    ),
    "hallucination": Counterpart(
        ("grounding", "entailment", "honesty"),
        "words of confidence are no truth: rewarding them rewards overclaiming. grounding and entailment compare with "
        "a source, honesty lowers overclaiming; of all three high is good.",
    ),
    "factuality": Counterpart(
        ("grounding", "entailment"), "phrases of citation and years prove nothing; a source to compare with does."
    ),
    "bias": Counterpart(("fair_wording",), "the same idea under a name that says which direction is good."),
    "harmlessness": Counterpart(("safety",), "the same idea; words about ethics earn nothing."),
    "commonsense": Counterpart((), "no list of words knows common sense: train or take a reward model."),
    "medical_accuracy": Counterpart(
        (), "terms and disclaimers are not accuracy: take a reward model, or keywords for terms that must occur."
    ),
    "legal_compliance": Counterpart(
        (), "terms and disclaimers are not compliance: take a reward model, or keywords for clauses that must occur."
    ),
    "financial_accuracy": Counterpart(
        (), "terms and disclaimers are not accuracy: take numeric_answer for figures, else a reward model."
    ),
    "math_correctness": Counterpart(
        ("arithmetic",), "equations that hold minus those that do not; a bare expression counts for nothing."
    ),
    "math_reasoning": Counterpart(
        ("math_answer", "tags", "causal_reasoning"), "its parts, each with a weight of its own."
    ),
    "counterfactual_math": Counterpart(
        ("math_answer", "counterfactual_reasoning"), "its parts, each with a weight of its own."
    ),
    "code_quality": Counterpart(("code_style",), "the findings of ruff instead of cues."),
    "code_completeness": Counterpart(("code_tests", "code_syntax"), "def and return show nothing that tests do not."),
    "code_correctness": Counterpart(("code_tests",), "a row without tests gives None, not ½."),
    "mbpp_reward": Counterpart(("code_tests:tests=test_list",), "the share of MBPP's tests that pass, in a sandbox."),
    "image_relevance": Counterpart((), "nearstep trains on text, and a constant is no reward."),
    "audio_quality": Counterpart((), "nearstep trains on text, and a constant is no reward."),
}
# Of AlignTune's names that stand here too: what differs.
SAME_NAMES: dict[str, str] = {
    "length": "the same range; closeness to a target is length_target",
    "brevity": "falls evenly to 0 at 500 words",
    "conciseness": "fillers and overlap of neighbouring sentences, without the type-token ratio, which diversity has",
    "readability": "the formula of Flesch",
    "fluency": "one share, of well-formed sentences",
    "diversity": "type-token ratio in a moving window, so that length does not lower it",
    "engagement": "the share of sentences that address the reader, without exclamation marks",
    "coherence": "links between neighbouring sentences, not their lengths",
    "logical_consistency": "contradictions found by an inference model, not pairs of antonyms",
    "politeness": "text without cues is worth ½, not 0",
    "helpfulness": "text without cues is worth ½, not 0",
    "honesty": "text without cues is worth ½, not 0; overclaiming lowers it",
    "causal_reasoning": "the share of sentences with a cause, so that one “because” is not enough",
    "counterfactual_reasoning": "the share of sentences with a counterfactual",
    "relevance": "the words of the prompt that are taken up; wanted words are keywords, lengths are length",
    "sentiment": "the probability of the label wanted, never one minus that of another",
    "safety": "threats, insults and harmful instructions by words; toxicity is what a model says",
    "toxicity": "high means toxic, so its weight is negative",
    "semantic_similarity": "the cosine itself, from -1 to 1; no fallback to shared words",
    "bleu": "a row without a reference gives None, not 0",
    "rouge": "a row without a reference gives None, not 0",
    "meteor": "a row without a reference gives None, not 0",
    "bertscore": "a row without a reference gives None, not 0; the model is named",
    "code_syntax": "the same; text without fences is read as code",
    "code_execution": "in a sandbox, never in the trainer's process",
}

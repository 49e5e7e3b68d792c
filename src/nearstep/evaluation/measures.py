"""How each metric of `nearstep eval` is taken: from the evidence to figures by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from nearstep.config.evaluation import RULES
from nearstep.evaluation.answers import PromptAnswers
from nearstep.evaluation.evidence import Evidence
from nearstep.evaluation.metrics import likelihood, preferences, right_answers, texts, wins
from nearstep.evaluation.metrics.figures import Figure, mean, ratio, share, statistic
from nearstep.evaluation.preference_data import TIES, ManyAnswers
from nearstep.evaluation.reading import kl_sums, read_answers
from nearstep.evaluation.scoring import TextPair, rule_values
from nearstep.rewards.builtin.equations import final_number
from nearstep.rewards.builtin.reference import Bleu, Rouge
from nearstep.rewards.builtin.text import words_of

MetricFigures: TypeAlias = dict[str, Figure]
NO_ANSWERS = "there are no completions: give completions, or model_path and dataset_name"
NO_REWARD = "no reward: give reward_model_path or reward_funcs"
NO_REFERENCES = "the rows have no reference (column reference)"


def perplexity(evidence: Evidence) -> MetricFigures:
    """perplexity and bits_per_byte of the model on the answers in the data."""
    answers, model = evidence.data_answers, evidence.model
    if model is None or answers is None or not len(answers):
        why = "no model_path" if model is None else "the rows have no answer (column completion, reference or messages)"
        return {"perplexity": Figure.none(why), "bits_per_byte": Figure.none(why)}
    counted = answers if evidence.config.count_end else answers.without_ends()
    sums = read_answers(model.policy, counted, evidence.config.max_tokens_per_microbatch)
    nll = [-value for value in sums.logprob]
    return {
        "perplexity": likelihood.perplexity(nll, sums.tokens, counted.groups, evidence.bootstrap, counted.dropped),
        "bits_per_byte": likelihood.bits_per_byte(
            nll, counted.texts, counted.groups, evidence.bootstrap, counted.dropped
        ),
    }


def reward_accuracy(evidence: Evidence) -> MetricFigures:
    """reward_accuracy and reward_margin on preference pairs; by subset where rows name one."""
    pairs, bootstrap = evidence.pairs, evidence.bootstrap
    scored = _score_texts(evidence, [side for pair in pairs for side in (pair.better, pair.worse)])
    if scored is None or not pairs:
        why = preferences.NO_PAIRS if not pairs else f"{NO_REWARD}, or model_path"
        return {"reward_accuracy": Figure.none(why), "reward_margin": Figure.none(why)}
    better, worse, prompts = scored[::2], scored[1::2], [pair.prompt for pair in pairs]
    figures = {
        "reward_accuracy": preferences.reward_accuracy(better, worse, prompts, bootstrap),
        "reward_margin": preferences.reward_margin(better, worse, prompts, bootstrap),
    }
    for subset in sorted({pair.subset for pair in pairs if pair.subset is not None}):
        rows = [row for row, pair in enumerate(pairs) if pair.subset == subset]
        figures[f"reward_accuracy/{subset}"] = preferences.reward_accuracy(
            [better[row] for row in rows], [worse[row] for row in rows], [prompts[row] for row in rows], bootstrap
        )
    return figures


def rewardbench(evidence: Evidence) -> MetricFigures:
    """The score of each subset of a RewardBench file, and their mean."""
    if not evidence.many_answers:
        figures = reward_accuracy(evidence)
        subsets = {name.partition("/")[2]: figure for name, figure in figures.items() if "/" in name}
        if not subsets:
            return {"rewardbench": Figure.none("the rows are none of RewardBench: they have no column subset")}
    else:
        subsets = _subsets_of_2(evidence, evidence.many_answers)
    named = {f"rewardbench/{subset}": figure for subset, figure in subsets.items()}
    return {"rewardbench": preferences.mean_of_subsets(list(subsets.values())), **named}


def _subsets_of_2(evidence: Evidence, rows: Sequence[ManyAnswers]) -> MetricFigures:
    scored = _score_texts(evidence, [side for row in rows for side in (*row.right, *row.wrong)])
    if scored is None:
        return {subset: Figure.none(f"{NO_REWARD}, or model_path") for subset in sorted({row.subset for row in rows})}
    values = iter(scored)
    rewards = [([next(values) for _ in row.right], [next(values) for _ in row.wrong]) for row in rows]
    found: MetricFigures = {}
    for subset in sorted({row.subset for row in rows}):
        own = [(row, *both) for row, both in zip(rows, rewards, strict=True) if row.subset == subset]
        if subset == TIES:
            kinds = {
                kind: {
                    row.number: preferences.TiesPrompt(right, wrong) for row, right, wrong in own if row.kind == kind
                }
                for kind in ("ref", "tied")
            }
            found[subset] = preferences.ties_figure(kinds["ref"], kinds["tied"], evidence.bootstrap)
        else:
            results = [preferences.best_of(right, wrong) for _, right, wrong in own]
            found[subset] = share(results, range(len(results)), evidence.bootstrap)
    return found


def reward(evidence: Evidence) -> MetricFigures:
    """Mean, spread and median of the reward of completions, and the mean of each part."""
    scores, answers = evidence.scores, evidence.answers
    if scores is None or answers is None:
        return {"reward_mean": Figure.none(NO_ANSWERS if answers is None else NO_REWARD)}
    prompts, bootstrap = answers.groups, evidence.bootstrap
    figures = {
        "reward_mean": mean(scores.totals, prompts, bootstrap),
        "reward_std": texts.spread(scores.totals, prompts, bootstrap),
        "reward_median": statistic(texts.median, scores.totals, prompts, bootstrap),
    }
    parts = scores.parts if len(scores.parts) > 1 else {}
    return figures | {f"reward/{name}": mean(values, prompts, bootstrap) for name, values in parts.items()}


def kl(evidence: Evidence) -> MetricFigures:
    """kl and kl_per_token to the reference model along the completions."""
    answers, model, reference = evidence.readable_answers, evidence.model, evidence.reference
    if model is None or reference is None or answers is None:
        why = "no model_path" if model is None else NO_ANSWERS if answers is None else "no reference_model_path"
        return {"kl": Figure.none(why), "kl_per_token": Figure.none(why)}
    sums = kl_sums(
        model.policy, reference.policy, answers, evidence.config.max_tokens_per_microbatch, _temperature(evidence)
    )
    tokens = list(map(len, answers.said))
    return {
        "kl": mean(sums, answers.groups, evidence.bootstrap),
        "kl_per_token": ratio(sums, tokens, answers.groups, evidence.bootstrap, why=likelihood.NOTHING),
    }


def entropy(evidence: Evidence) -> MetricFigures:
    """The mean entropy of the model's distribution at each token of the completions."""
    answers, model = evidence.readable_answers, evidence.model
    if model is None or answers is None:
        return {"entropy": Figure.none("no model_path" if model is None else NO_ANSWERS)}
    tokens = evidence.config.max_tokens_per_microbatch
    sums = read_answers(model.policy, answers, tokens, _temperature(evidence))
    return {"entropy": ratio(sums.entropy, sums.tokens, answers.groups, evidence.bootstrap, why=likelihood.NOTHING)}


def win_rate(evidence: Evidence) -> MetricFigures:
    """Against references and against another file or model, by reward; plain and length-controlled."""
    answers = evidence.answers
    if answers is None or evidence.scores is None:
        return {"win_rate": Figure.none(NO_ANSWERS if answers is None else NO_REWARD)}
    sides: Mapping[str, Sequence[str | None] | None] = {
        "reference": evidence.references, "against": evidence.other_side
    }  # fmt: skip
    figures: MetricFigures = {}
    for name, other in sides.items():
        if other is not None and any(text is not None for text in other):
            figures |= _against(evidence, answers, other, name)
    return figures or {"win_rate": Figure.none(f"{NO_REFERENCES}, and there is no other side (against)")}


def _against(evidence: Evidence, answers: PromptAnswers, other: Sequence[str | None], name: str) -> MetricFigures:
    assert evidence.scores is not None
    rows = [row for row, text in enumerate(other) if text is not None]
    theirs = [text for text in other if text is not None]
    rewards = evidence.score_texts(theirs, rows)
    ours = [evidence.scores.totals[row] for row in rows]
    results: list[float | None] = [None] * len(answers)
    more = [0.0] * len(answers)
    for row, a, b, text in zip(rows, ours, rewards, theirs, strict=True):
        results[row], more[row] = wins.win_result(a, b), len(answers.texts[row]) - len(text)
    prompts, bootstrap = answers.groups, evidence.bootstrap
    return {
        f"win_rate/{name}": wins.win_rate(results, prompts, bootstrap),
        f"lc_win_rate/{name}": wins.length_controlled_win_rate(results, more, prompts, bootstrap),
    }


def accuracy(evidence: Evidence) -> MetricFigures:
    """accuracy, avg@n, maj@n and pass@k by the rule of task_type, or by a reward function."""
    config, answers = evidence.config, evidence.answers
    if answers is None:
        return {"accuracy": Figure.none(NO_ANSWERS)}
    right = _right(evidence, answers)
    if right is None:
        return {"accuracy": Figure.none("the rows do not say what is right (column answer or reference)")}
    prompts, bootstrap = answers.groups, evidence.bootstrap
    found = right_answers.accuracy(right, prompts, bootstrap)
    most = max(prompts.count(prompt) for prompt in set(prompts)) if prompts else 0
    figures = {"accuracy": found}
    if most > 1:
        figures[f"avg@{most}"] = found
        if config.task_type != "code" and config.correctness is None:
            votes = [_vote(text, config.task_type) for text in answers.texts]
            figures[f"maj@{most}"] = right_answers.majority(right, votes, prompts, bootstrap)
    for k in config.k_list or tuple(dict.fromkeys((1, most))):
        figures[f"pass@{k}"] = right_answers.pass_at_k(right, prompts, k, bootstrap)
    return figures


def _right(evidence: Evidence, answers: PromptAnswers) -> list[bool | None] | None:
    """Whether each completion is right; None where nobody knows, for all of them if no row says what is right."""
    config = evidence.config
    rule = config.correctness or RULES[config.task_type]
    if config.correctness is None and config.task_type != "code":
        if evidence.cells is None:
            return None
        name, cells = evidence.cells
        rule += f":{'reference' if config.task_type == 'text' else 'answer'}={name}"
        columns = {**answers.prompts.columns, name: cells}
        answers = replace(answers, prompts=replace(answers.prompts, columns=columns))
    values = rule_values(rule, answers, evidence.tokenizer)
    return [None if math.isnan(value) else value >= 1 for value in values]


def _vote(text: str, task_type: str) -> object:
    """What a completion gives as its answer; None for none."""
    number = final_number(text) if task_type == "math" else None
    return number if number is not None else " ".join(words_of(text)) or None


def rouge(evidence: Evidence) -> MetricFigures:
    """ROUGE F1 against the references."""
    names = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeL"}
    return _likeness(evidence, {name: Rouge(variant=variant).value for name, variant in names.items()}, Rouge())  # type: ignore[arg-type]


def bleu(evidence: Evidence) -> MetricFigures:
    """Mean BLEU of single completions against the references."""
    return _likeness(evidence, {"bleu": Bleu().value}, Bleu())


def _likeness(
    evidence: Evidence, values: Mapping[str, Callable[[str, list[str]], float]], of: Rouge | Bleu
) -> MetricFigures:
    answers, references = evidence.answers, evidence.references
    if answers is None or not any(text is not None for text in references):
        why = NO_ANSWERS if answers is None else NO_REFERENCES
        return {name: Figure.none(why) for name in values}
    of.need_package()
    rows = list(zip(answers.texts, references, strict=True))
    found = {
        name: [None if reference is None else value(text, [reference]) for text, reference in rows]
        for name, value in values.items()
    }
    return {name: mean(each, answers.groups, evidence.bootstrap) for name, each in found.items()}


def diversity(evidence: Evidence) -> MetricFigures:
    """distinct-1, distinct-2, self-BLEU and repetition of the completions."""
    answers = evidence.answers
    if answers is None:
        return {name: Figure.none(NO_ANSWERS) for name in ("distinct_1", "distinct_2", "self_bleu", "repetition")}
    said, prompts, bootstrap = answers.texts, answers.groups, evidence.bootstrap
    return {
        "distinct_1": texts.distinct(said, prompts, 1),
        "distinct_2": texts.distinct(said, prompts, 2),
        "self_bleu": texts.self_bleu(said, prompts, bootstrap),
        "repetition": mean([texts.repetition(text) for text in said], prompts, bootstrap),
    }


def length(evidence: Evidence) -> MetricFigures:
    """How long completions are, and which share was cut off or is empty."""
    answers = evidence.answers
    if answers is None:
        return {name: Figure.none(NO_ANSWERS) for name in ("response_length", "truncated", "empty")}
    prompts, bootstrap = answers.groups, evidence.bootstrap
    tokens = Figure.none("no model_path, so there is no tokenizer to count by")
    cut = [float(not done) for done in answers.finished]
    unknown = Figure.none("the file has no column finished, so nobody knows which completions ended by themselves")
    return {
        "response_length": tokens if evidence.model is None else mean(list(map(len, answers.said)), prompts, bootstrap),
        "response_characters": mean(list(map(len, answers.texts)), prompts, bootstrap),
        "truncated": share(cut, prompts, bootstrap) if answers.ends_known else unknown,
        "empty": share([float(not text.strip()) for text in answers.texts], prompts, bootstrap),
    }


def _score_texts(evidence: Evidence, sides: Sequence[TextPair]) -> list[float] | None:
    """The rewards of texts; of a model's own where the settings name none. None where there is neither."""
    if not sides:
        return []
    if evidence.scorer is not None:
        return evidence.scorer.texts(sides)
    if evidence.own_scorer is None:
        return None
    note = f"Pairs are scored by the {evidence.own_scorer.name}: no reward is given."
    evidence.notes += [] if note in evidence.notes else [note]
    return evidence.own_scorer.texts(sides)


def _temperature(evidence: Evidence) -> float:
    """That at which the completions were sampled; 1 where they were not sampled, or by somebody else."""
    if evidence.writer is None or evidence.config.completions is not None:
        return 1.0
    return evidence.writer.sampling.temperature

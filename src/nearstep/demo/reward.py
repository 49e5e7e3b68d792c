"""How the demo's reward model is made: the policy's trunk under a new head, trained on which summary is preferred."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from nearstep.config.reward_model import RewardConfig
from nearstep.demo.batches import tokenize
from nearstep.demo.preferences import Ranking
from nearstep.reward_modeling.examples import Comparison, PreferenceLabel
from nearstep.reward_modeling.measures import PairMeasures
from nearstep.reward_modeling.trainer import RewardModelTrainer

WARMUP_STEPS = 10


def train_reward_model(
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    unseen: Sequence[Ranking],
    *,
    batch_groups: int,
    seed: int,
    target: Path,
) -> PairMeasures:
    """One pass over the rankings; the model goes to `target`, what it does on `unseen` comes back."""
    groups = comparisons(tokenizer, rankings)
    trained = RewardModelTrainer(
        settings(
            target.with_name("reward_training"),
            batch_groups=batch_groups,
            steps=len(groups) // batch_groups,
            seed=seed,
        ),
        processing_class=tokenizer,
        model=str(policy),
        train_dataset=groups,
        eval_dataset=comparisons(tokenizer, unseen),
    )
    folder = trained.train(Console(quiet=True))
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    assert trained.report is not None
    assert isinstance(trained.report.held_out, PairMeasures)
    return trained.report.held_out


def settings(output: Path, *, batch_groups: int, steps: int, seed: int) -> RewardConfig:
    """What a user would pass to `nearstep reward`; a run of so few steps that the rate would only rise has no rise."""
    return RewardConfig(
        output_dir=str(output),
        seed=seed,
        use_cpu=True,
        per_device_train_batch_size=batch_groups,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_STEPS if steps > WARMUP_STEPS else 0,
        adam_beta2=0.98,
        weight_decay=0.01,
    )


def comparisons(tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]) -> list[Comparison]:
    """Every two summaries of a post that the labeller tells apart (arXiv 2203.02155); an unfinished one has no EOS."""
    groups = tokenize(tokenizer, [ranking.prompt for ranking in rankings], [ranking.summaries for ranking in rankings])
    return [
        Comparison(
            tuple(group.prompt + completion for completion in group.completions),
            tuple(PreferenceLabel(better, worse) for better, worse in ranking.pairs()),
        )
        for group, ranking in zip(groups, rankings, strict=True)
        if ranking.pairs()
    ]

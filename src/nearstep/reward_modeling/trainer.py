"""RewardModelTrainer, the public face: from labels and scores of texts to a reward model that PPO opens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError
from nearstep.common.hub import push_to_hub
from nearstep.config.reward_model import RewardConfig
from nearstep.reward_modeling.examples import Comparison, Grade
from nearstep.reward_modeling.fit import Fit
from nearstep.reward_modeling.measures import GradeMeasures, PairMeasures, grade_measures, pair_measures
from nearstep.reward_modeling.objective import LearningModel
from nearstep.reward_modeling.progress import Progress
from nearstep.reward_modeling.report import RewardReport
from nearstep.reward_modeling.run import RewardRun, RewardRunInputs, assemble
from nearstep.reward_modeling.saving import save, try_saving
from nearstep.reward_modeling.scale import Scale
from nearstep.reward_modeling.scoring import ExampleScorer
from nearstep.rewards.build import RewardEntry


class RewardModelTrainer:
    """Trains a reward model: from preference pairs, or from the scores of other rewards.

    Model and data may be objects, folders or hub names. With `reward_funcs` (or reward_model_path, reward_url) it
    learns their weighted sum, or with objective = pairwise which of two texts they like better; where the data has
    prompts alone, or there is none, the model itself writes the texts that they score. A data set may also be a list
    of `Comparison`: rows of ids, for several answers to a prompt, ties, and answers that were cut off.
    `base_model_name`, `reward_functions` and `composite_weights` are AlignTune's names for `model`, `reward_funcs` and
    `args.reward_weights`.

    Raises ConfigError, DataError, ModelError or RewardError, each naming the place, before anything is trained or
    written.
    """

    def __init__(
        self,
        args: RewardConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: nn.Module | str | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        *,
        reward_funcs: RewardEntry | Sequence[RewardEntry] = (),
        peft_config: Any = None,
        callbacks: Sequence[object] | None = None,
        base_model_name: nn.Module | str | None = None,
        reward_functions: Sequence[RewardEntry] = (),
        composite_weights: Sequence[float] | None = None,
    ) -> None:
        config = args if args is not None else RewardConfig()
        if model is not None and base_model_name is not None:
            raise ConfigError("model and base_model_name are the same: give one")
        if composite_weights is not None:
            config = replace(config, reward_weights=tuple(composite_weights))
        is_several = isinstance(reward_funcs, Sequence) and not isinstance(reward_funcs, str)
        funcs = tuple(reward_funcs) if is_several else (reward_funcs,)  # type: ignore[arg-type]
        inputs = RewardRunInputs(
            tokenizer=processing_class,
            model=model if model is not None else base_model_name,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            callbacks=tuple(callbacks or ()),
            reward_funcs=(*funcs, *reward_functions),
        )
        self.run: RewardRun = assemble(config, inputs)
        self.report: RewardReport | None = None

    @property
    def model(self) -> nn.Module:
        """The reward model with its current weights."""
        return self.run.trained.model

    def train(self, console: Console | None = None) -> Path:
        """Fit, normalise, report and save; the folder of the reward model, `reward` under `output_dir`.

        What happens is printed to `console`, to the terminal if none is given.
        """
        r = self.run
        folder = Path(r.config.output_dir)
        with Progress(folder, r.backend, console) as progress:
            for line in r.introduction():
                progress.say(line)
            if r.backend.rank == 0:
                try_saving(folder, r.trained, r.tokenizer, r.config, self._report(0), r.data_sources)
            steps = self._fit(progress)
            try:
                self.report = self._scaled_and_measured(steps)
            except Exception as error:
                self._save(self._report(steps))
                error.add_note(f"The model as it was trained lies in {folder / 'reward'}.")
                raise
            self._save(self.report)
            r.backend.wait_for_all()
            for table in self.report.tables():
                progress.say(table)
            if (remark := self.report.remark()) is not None:
                progress.say(remark)
            progress.say(f"The reward model is in {folder / 'reward'}, the report in {folder / 'report.json'}.")
        if r.config.push_to_hub and r.backend.rank == 0:
            push_to_hub(folder / "reward", r.config.hub_model_id or folder.resolve().name)
        return folder / "reward"

    def _scaled_and_measured(self, steps: int) -> RewardReport:
        """Put the rewards' zero where it belongs, and see how the model does on unseen texts."""
        r = self.run
        scorer = ExampleScorer(r.trained.reader, r.backend, r.config.per_device_eval_batch_size)
        r.examples.objective.scale.fold_into(r.trained.head)
        scale, normalized = self._scale(scorer)
        scale.fold_into(r.trained.head)
        return replace(self._report(steps), held_out=self._measure(scorer), normalized=normalized, offset=scale.offset)

    def _report(self, steps: int) -> RewardReport:
        """What is known without measures."""
        examples = self.run.examples
        return RewardReport(examples.kind, steps, len(examples.train), examples.unit, None, "none", 0.0)

    def _save(self, report: RewardReport) -> None:
        r = self.run
        if r.backend.rank == 0:
            save(Path(r.config.output_dir), r.trained, r.tokenizer, r.config, report, r.data_sources)

    def _fit(self, progress: Progress) -> int:
        r, examples = self.run, self.run.examples
        return Fit(
            config=r.config,
            learner=LearningModel(r.trained.model, r.trained.reader, examples.objective),
            objective=examples.objective,
            epochs=r.epochs,
            train=examples.train,
            held_out=examples.watched,
            best_metric="accuracy" if examples.kind == "pairwise" else "loss",
            progress=progress,
            callbacks=r.callbacks,
        ).run()

    def _scale(self, scorer: ExampleScorer) -> tuple[Scale, str]:
        """Where the rewards' zero goes, and the name of that."""
        chosen, examples = self.run.config.normalize, self.run.examples
        if chosen == "none" or (chosen == "auto" and examples.kind == "regression"):
            return Scale(), "none"
        rows = [row for each in examples.train for row in each.best_rows()]
        return Scale.putting_at_zero(
            scorer.rows(rows), unit=chosen == "mean_and_std"
        ), "mean" if chosen == "auto" else chosen

    def _measure(self, scorer: ExampleScorer) -> PairMeasures | GradeMeasures | None:
        """Metrics of the current weights on the examples kept from training."""
        pairs = [each for each in self.run.examples.held_out if isinstance(each, Comparison)]
        grades = [each for each in self.run.examples.held_out if isinstance(each, Grade)]
        if pairs:
            scored = scorer.pairs(pairs)
            return pair_measures(scored.chosen, scored.rejected, scored.preferences, scored.margins)
        if not grades:
            return None
        return grade_measures(scorer.grades(grades), torch.tensor([grade.target for grade in grades]))

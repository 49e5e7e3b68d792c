"""RewardModelTrainer, the public face: from labels and scores of texts to a reward model that PPO opens."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from nearstep.common.errors import ConfigError
from nearstep.common.given import (
    GivenModel,
    GivenRewards,
    GivenTokenizer,
    entries,
    given_model,
    given_settings,
    refuse_foreign,
)
from nearstep.common.hub import push_to_hub
from nearstep.common.telling import quiet_libraries
from nearstep.config.reward_model import RewardConfig
from nearstep.reports.settings_file import settings_text, write_settings
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

if TYPE_CHECKING:
    GivenRewardConfig = RewardConfig | None
else:
    GivenRewardConfig = object


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
        args: GivenRewardConfig = None,
        processing_class: GivenTokenizer = None,
        model: GivenModel = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        *,
        reward_funcs: GivenRewards = (),
        peft_config: Any = None,
        callbacks: object = None,
        base_model_name: GivenModel = None,
        reward_functions: GivenRewards = (),
        composite_weights: Sequence[float] | None = None,
        **foreign: object,
    ) -> None:
        refuse_foreign(foreign, RewardModelTrainer)
        config = RewardConfig() if args is None else given_settings(args, RewardConfig, "RewardModelTrainer")
        if model is not None and base_model_name is not None:
            raise ConfigError("model and base_model_name are the same: give one")
        if composite_weights is not None:
            config = replace(config, reward_weights=tuple(composite_weights))
        inputs = RewardRunInputs(
            tokenizer=processing_class,
            model=given_model(base_model_name, "base_model_name") if model is None else model,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            callbacks=callbacks,
            reward_funcs=(*entries(reward_funcs), *entries(reward_functions)),
        )
        with quiet_libraries():
            self.run: RewardRun = assemble(config, inputs)
        self.report: RewardReport | None = None
        self._is_over = False

    @property
    def model(self) -> nn.Module:
        """The reward model with its current weights."""
        return self.run.trained.model

    def train(self, console: Console | None = None) -> Path:
        """Fit, normalise, report and save; the folder of the reward model, `reward` under `output_dir`.

        What happens is printed to `console`, to the terminal if none is given. When the run is over, it says so and
        gives back the folder: nothing is trained, written or moved.
        """
        r = self.run
        folder = Path(r.config.output_dir)
        if self._is_over:
            warnings.warn(
                f"the run is over: the reward model is in {folder / 'reward'}, and nothing was trained now. A new "
                "RewardModelTrainer begins anew.",
                stacklevel=2,
            )
            return folder / "reward"
        with quiet_libraries(), Progress(folder, r.backend, console) as progress:
            if r.backend.rank == 0:
                write_settings(folder, settings_text(r.config, "reward", r.given, processes=r.backend.world_size))
            for line in r.introduction():
                progress.say(line)
            if left_out := self._left_out():
                progress.say(f"Rewards will be scores less their mean, {left_out:.4g}; normalize = level keeps it.")
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
        self._is_over = True
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
        left_out = self._left_out()
        return RewardReport(examples.kind, steps, len(examples.train), examples.unit, None, "none", 0.0, left_out)

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
        if chosen in ("none", "level"):
            return Scale(), chosen
        rows = [row for each in examples.train for row in each.best_rows()]
        return Scale.putting_at_zero(scorer.rows(rows), unit=chosen == "mean_and_std"), chosen

    def _left_out(self) -> float:
        """What is missing to the level of the scores: their mean, where the head has no place for it."""
        return self.run.examples.objective.scale.offset if self.run.trained.head.bias is None else 0.0

    def _measure(self, scorer: ExampleScorer) -> PairMeasures | GradeMeasures | None:
        """Metrics of the current weights on the examples kept from training."""
        pairs = [each for each in self.run.examples.held_out if isinstance(each, Comparison)]
        grades = [each for each in self.run.examples.held_out if isinstance(each, Grade)]
        if pairs:
            scored = scorer.pairs(pairs)
            return pair_measures(scored.chosen, scored.rejected, scored.preferences, scored.margins)
        if not grades:
            return None
        targets = torch.tensor([grade.target - self._left_out() for grade in grades])
        return grade_measures(scorer.grades(grades), targets)

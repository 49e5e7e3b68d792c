"""How the weights are fitted: by transformers' Trainer, which brings epochs, processes, checkpoints and callbacks.

Chosen over TRL's RewardTrainer, which knows pairs only (no regression, ties, smoothing), pads, and reads the reward
where the PAD id begins. What is ours, the packed forward pass and the loss, lies behind one nn.Module.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from nearstep.common.errors import ConfigError
from nearstep.common.plugins import need_package
from nearstep.config.reward_model import RewardConfig
from nearstep.reward_modeling.examples import Comparison, Grade
from nearstep.reward_modeling.objective import LearningModel, Objective
from nearstep.reward_modeling.progress import Progress, WatchedNumbers
from nearstep.training.optimizers import make_optimizer, masters_of, trained_weights


@dataclass(frozen=True)
class Fit:
    """What fitting needs. The held-out examples are looked at every eval_steps."""

    config: RewardConfig
    learner: LearningModel
    objective: Objective[Any]
    epochs: float
    train: Sequence[Comparison] | Sequence[Grade]
    held_out: Sequence[Comparison] | Sequence[Grade]
    best_metric: str  # which evaluation is the best: by accuracy, or by loss
    progress: Progress
    callbacks: Sequence[Any]  # trackers and those of the user

    def run(self) -> int:
        """Fit the weights in place; the number of optimizer steps taken, those before a resumed run included."""
        from transformers import PrinterCallback, Trainer

        config = self.config
        with callers_generators_kept():
            arguments = _arguments(config, self.epochs, best_metric=self.best_metric if self.held_out else None)
            masters = masters_of(self.learner.to(arguments.device), config)  # masters lie where the weights will
            parameters = masters.instead_of_narrow(trained_weights(self.learner))
            optimizer = make_optimizer(parameters, config, config.learning_rate)
            masters.attach(optimizer)
            trainer = Trainer(
                model=self.learner,
                args=arguments,
                data_collator=self.objective.inputs,
                train_dataset=self.train,
                eval_dataset=self.held_out or None,
                compute_metrics=_watched,
                optimizers=(optimizer, None),
                callbacks=[WatchedNumbers(self.progress, self.learner), *self.callbacks],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=checkpoint_of(config))
            return int(trainer.state.global_step)


def require_trainer() -> None:
    """Raise ConfigError where transformers' Trainer lacks what it runs on."""
    need_package("accelerate", "reward", "training a reward model", ConfigError)


def checkpoint_of(config: RewardConfig) -> str | None:
    """The checkpoint to go on from, if any. Raises ConfigError for one that is not there."""
    place = config.resume_from_checkpoint
    if place is not None and not Path(place, "trainer_state.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint = {place}: there is no checkpoint. Give a folder checkpoint-N, which save_steps "
            "leaves."
        )
    return place


def _arguments(config: RewardConfig, epochs: float, *, best_metric: str | None) -> Any:
    """The settings as transformers' TrainingArguments; `best_metric` is None where there is nothing to evaluate on.

    Trackers are callbacks, dropout and precision the model's own affair.
    """
    from transformers import TrainingArguments

    evaluates = best_metric is not None and config.eval_steps is not None
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        run_name=config.run_name or Path(config.output_dir).resolve().name,
        seed=config.seed % 2**32,  # numpy takes no more
        use_cpu=config.use_cpu,
        num_train_epochs=epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm or 0.0,  # 0: never cut
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # or a broken loss would be logged as a good one
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps if evaluates else None,
        save_strategy="no" if config.save_steps is None else "steps",
        save_steps=config.save_steps or 500,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=config.load_best_model_at_end,
        metric_for_best_model=best_metric if evaluates else None,
        greater_is_better=best_metric != "loss" if evaluates else None,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # Several GPUs in one process would mean torch's DataParallel, which cannot split a packed batch. torchrun uses all.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _watched(prediction: Any) -> dict[str, float]:
    """The numbers of an evaluation during training, from rewards and labels."""
    rewards = torch.as_tensor(prediction.predictions)
    watched = {"mean_reward": rewards.mean().item()}
    if rewards.dim() == 2:
        clear = torch.as_tensor(prediction.label_ids) != 0.5
        gap = (rewards[:, 0] - rewards[:, 1])[clear].double()
        watched["accuracy"] = ((gap > 0).double() + 0.5 * (gap == 0)).mean().item()
        watched["margin"] = gap.mean().item()
    return watched


@contextmanager
def callers_generators_kept() -> Iterator[None]:
    """Put every global random generator back afterwards: the trainer seeds them all."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    ours, numpys = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(ours)
            numpy.random.set_state(numpys)

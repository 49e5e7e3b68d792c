"""PPOTrainer, the public face: assembles a run and starts the loop."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.common.errors import ConfigError, TrainingError
from nearstep.common.given import GivenModel, GivenRewards, GivenTokenizer, given_settings, refuse_foreign
from nearstep.common.hub import push_to_hub
from nearstep.common.places import expanded
from nearstep.common.telling import quiet_libraries
from nearstep.common.waiting import WATCHDOG, closing_soon
from nearstep.config.ppo import PPOConfig
from nearstep.reports.health.verdict import Verdict, judge_run
from nearstep.reports.run_folder import RunFolder
from nearstep.training.loop import train
from nearstep.training.recipe import Recipe
from nearstep.training.state import State

if TYPE_CHECKING:
    GivenPPOConfig = PPOConfig
else:
    GivenPPOConfig = object


@dataclass(frozen=True)
class TrainOutput:
    """What a finished run leaves: how far it came, the folders of its models, and the metrics that were logged."""

    updates: int
    episodes: int
    policy: Path
    value: Path | None
    metrics: Sequence[Mapping[str, int | float]] = field(default=(), repr=False)  # as in metrics.jsonl

    def frame(self) -> Any:
        """The metrics as a pandas.DataFrame, one line for each entry."""
        import pandas

        return pandas.DataFrame(self.metrics)


class PPOTrainer:
    """Trains a policy with PPO against reward models and reward functions.

    Models and tokenizers may be objects, folders or hub names, and what may be several a list or one of them
    (docs/running.md has a table); anything else is refused by the name of its argument. What is left out is taken
    from `args` or made: the reference is a frozen copy of the policy as it starts (the policy with its adapters off
    where they are new), the critic starts from the reward model if both read the same tokens, else from the policy's
    trunk with a head of zeros; with `critic_trunk` it is made on the policy's own weights. `reward_funcs` follow TRL's
    convention, or name `file.py:function`. `reward_processing_class` is the reward model's own tokenizer, where the
    model was not loaded from a folder that has it. Every axis of the algorithm takes an object of its protocol in place
    of what its setting names: `trust_region`, `advantage`, `kl_controller`, `critic_schedule`, `loss_aggregation`,
    `value_head`, `correction`, `sampler`, `gate` (docs/extending.md). `engine` generates the episodes: an object, or a
    class or function of EngineSettings. `auxiliary_losses`, `teacher_model` and `ptx_dataset` are what the policy
    learns beside PPO (docs/algorithms.md). `value_peft_config` is of the critic's adapters (critic_trunk =
    adapter), where they differ from the policy's.

    Raises ConfigError, DataError, ModelError or RewardError, each naming the place, before anything is trained or
    written.
    """

    def __init__(
        self,
        args: GivenPPOConfig,
        processing_class: GivenTokenizer = None,
        model: GivenModel = None,
        ref_model: GivenModel = None,
        reward_model: GivenRewards = None,
        train_dataset: object = None,
        value_model: GivenModel = None,
        *,
        reward_funcs: GivenRewards = (),
        reward_processing_class: GivenTokenizer = None,
        eval_dataset: object = None,
        peft_config: Any = None,
        value_peft_config: Any = None,
        engine: object = None,
        callbacks: object = None,
        trust_region: object = None,
        advantage: object = None,
        kl_controller: object = None,
        critic_schedule: object = None,
        loss_aggregation: object = None,
        value_head: object = None,
        correction: object = None,
        sampler: object = None,
        gate: object = None,
        auxiliary_losses: object = None,
        teacher_model: GivenModel = None,
        ptx_dataset: object = None,
        **foreign: object,
    ) -> None:
        refuse_foreign(foreign, PPOTrainer)
        inputs = RunInputs(
            tokenizer=processing_class,
            model=model,
            ref_model=ref_model,
            value_model=value_model,
            reward_model=reward_model,
            reward_tokenizer=reward_processing_class,
            reward_funcs=reward_funcs,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config, value_peft_config=value_peft_config,
            engine=engine, callbacks=callbacks,
            trust_region=trust_region,
            advantage=advantage,
            kl_controller=kl_controller,
            critic_schedule=critic_schedule,
            loss_aggregation=loss_aggregation,
            value_head=value_head,
            correction=correction,
            sampler=sampler,
            gate=gate,
            auxiliary_losses=auxiliary_losses,
            teacher_model=teacher_model,
            ptx_dataset=ptx_dataset,
        )  # fmt: skip
        self.recipe: Recipe = assemble(given_settings(args, PPOConfig, "PPOTrainer"), inputs)
        self.state = State()
        self._output: TrainOutput | None = None

    @property
    def model(self) -> nn.Module:
        """The policy with its current weights."""
        return self.recipe.models.policy.model

    @property
    def value_model(self) -> nn.Module | None:
        """The critic with its current weights, a ModuleList of several; None if advantages need none. Its trunk may be
        the policy's."""
        return None if self.recipe.models.critic is None else self.recipe.models.critic.model

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainOutput:
        """Run all updates that are left, evaluate, and save policy and critic under `output_dir`.

        After an interrupt it goes on with the update that was broken off, in the same files. When the run is over, it
        says so and gives back what it gave before: nothing is trained, written or moved.
        `resume_from_checkpoint` is a folder `checkpoint-N`, or true for the newest whole one of `output_dir`; the
        setting `resume` says the same. Raises CheckpointError for one that is damaged or of another run, and
        KeyboardInterrupt or SystemExit (143) after SIGINT or SIGTERM, once a checkpoint is on the disk.
        """
        r = self.recipe
        if self._output is not None and self.state.update >= r.batch.updates:
            warnings.warn(
                f"the run is over: its {r.batch.updates} updates are done, and nothing was trained now. A new "
                "PPOTrainer begins anew; for a longer run give it more total_episodes, and resume = auto.",
                stacklevel=2,
            )
            return self._output
        if resume_from_checkpoint is not None:
            r.checkpoint.go_on_from(resume_from_checkpoint)
        folder = Path(r.config.output_dir)
        with (
            r.interruption,  # a launcher ends the others of a process that has failed: what they close and say is whole
            quiet_libraries(),
            r.report as report,
            closing_soon(r.rewards, "rewards"),
            closing_soon(r.evaluator, "judges of evaluation"),
            closing_soon(r.engine, "engine"),
            nullcontext() if r.ahead is None else closing_soon(r.ahead, "generation process"),
            closing(r.checkpoint),
        ):
            self._run()
            report.end()
        if r.config.push_to_hub and r.backend.is_main:
            push_to_hub(folder / "policy", r.config.hub_model_id or folder.resolve().name)
        self._output = TrainOutput(
            self.state.update,
            self.state.episodes,
            folder / "policy",
            None if self.value_model is None else folder / "value",
            tuple(r.report.history),
        )
        return self._output

    def _run(self) -> None:
        """All updates that are left, and the models at their end."""
        r = self.recipe
        r.checkpoint.rehearse(self.state)
        try:
            with WATCHDOG.guarded():
                train(r, self.state)
        except SystemExit as error:
            if r.interruption.asked:
                raise
            raise TrainingError(
                f"{WATCHDOG.place}: something called sys.exit({error.code!r}) in the middle of the run. A reward, an "
                "engine or a callback must not; let it raise an exception of its own"
            ) from error
        except Exception as error:
            self._rescue(error)
            raise
        if r.interruption.is_of(r.backend.everywhere(r.interruption.signal)):
            r.checkpoint.save_unsaved(self.state)  # the signal may have come after the last look at it
            r.checkpoint.close()
            r.backend.wait_for_all()  # or a process that leaves would end the one that writes
            r.interruption.leave()
        r.checkpoint.save_final(self.state)

    def evaluate(self, metric_key_prefix: str = "eval") -> dict[str, int | float]:
        """The metrics of an evaluation with the weights as they are now, as `eval_objective/scores` and so on.

        Nothing is logged. Before the first update it is the start that is evaluated, also where a run will go on from a
        checkpoint: `train` loads it. Raises ConfigError where there is nothing to evaluate on.
        """
        r = self.recipe
        if not r.evaluator.has_prompts:
            raise ConfigError(
                "evaluate: there is nothing to evaluate on. Pass eval_dataset, or set eval_dataset_name, "
                "dataset_test_split or num_eval_rows"
            )
        with quiet_libraries(), closing(r.rewards), closing(r.evaluator), closing(r.engine):
            found = r.evaluator.begin(r.engine, self.state) or r.evaluator.evaluate(r.engine, self.state)
        return {f"{metric_key_prefix}_{name}": number for name, number in found.numbers.items()}

    def history(self) -> Sequence[Mapping[str, int | float]]:
        """The metrics that were logged so far, one mapping for each line of metrics.jsonl; also of a broken-off run."""
        return self.recipe.report.history

    def health(self) -> Verdict:
        """What the rules of docs/health.md say of the run so far: healthy, watch or ill, with cause and evidence."""
        if self.state.update == 0:
            return Verdict(0, ())
        return judge_run(RunFolder(Path(self.recipe.config.output_dir)))

    def _rescue(self, error: Exception) -> None:
        """Save the models that a failure after the end of an update has left whole: a report, an evaluation, a callback
        costs no weights."""
        if self.state.update > 0 and self.state.before is None and self.recipe.checkpoint.rescue(self.state):
            folder = self.recipe.config.output_dir
            error.add_note(f"The models as they are after update {self.state.update} lie in {folder}.")

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy as a model folder of its own; `train` has already left `policy/` and `value/`."""
        folder = Path(expanded(os.fspath(output_dir)) if output_dir is not None else self.recipe.config.output_dir)
        self.recipe.checkpoint.export_policy(folder, self.state)

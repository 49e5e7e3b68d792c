"""PPOTrainer, the public face: assembles a run and starts the loop."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.common.hub import push_to_hub
from nearstep.config.ppo import PPOConfig
from nearstep.rewards.build import RewardEntry
from nearstep.training.loop import train
from nearstep.training.recipe import Recipe
from nearstep.training.state import State


@dataclass(frozen=True)
class TrainOutput:
    """What a finished run leaves: how far it came, and the folders of its models."""

    updates: int
    episodes: int
    policy: Path
    value: Path | None


class PPOTrainer:
    """Trains a policy with PPO against reward models and reward functions.

    Models may be objects, folders or hub names; what is left out is taken from `args` or made: the reference is a
    frozen copy of the policy as it starts (the policy with its adapters off where they are new), the critic starts from
    the reward model if both read the same tokens, else from the policy's trunk with a head of zeros; with
    `critic_trunk` it is made on the policy's own weights. `reward_funcs` follow TRL's convention, or name
    `file.py:function`. `reward_processing_class` is the reward model's own tokenizer, where the model was not loaded
    from a folder that has it. Every axis of the algorithm takes an object of its protocol in place of what its setting
    names:
    `trust_region`, `advantage`, `kl_controller`, `critic_schedule`, `loss_aggregation` (docs/extending.md). `engine`
    generates the episodes: an object, or a class or function of EngineSettings.

    Raises ConfigError, DataError, ModelError or RewardError, each naming the place, before anything is trained or
    written.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: nn.Module | str | None = None,
        ref_model: nn.Module | str | None = None,
        reward_model: nn.Module | str | None = None,
        train_dataset: object = None,
        value_model: nn.Module | str | None = None,
        *,
        reward_funcs: RewardEntry | Sequence[RewardEntry] = (),
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        eval_dataset: object = None,
        peft_config: Any = None,
        engine: object = None,
        callbacks: Sequence[object] | None = None,
        trust_region: object = None,
        advantage: object = None,
        kl_controller: object = None,
        critic_schedule: object = None,
        loss_aggregation: object = None,
    ) -> None:
        inputs = RunInputs(
            tokenizer=processing_class,
            model=model,
            ref_model=ref_model,
            value_model=value_model,
            reward_model=reward_model,
            reward_tokenizer=reward_processing_class,
            reward_funcs=tuple(reward_funcs)
            if isinstance(reward_funcs, Sequence) and not isinstance(reward_funcs, str)
            else (reward_funcs,),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            engine=engine,
            callbacks=callbacks or (),
            trust_region=trust_region,
            advantage=advantage,
            kl_controller=kl_controller,
            critic_schedule=critic_schedule,
            loss_aggregation=loss_aggregation,
        )
        self.recipe: Recipe = assemble(args, inputs)
        self.state = State()

    @property
    def model(self) -> nn.Module:
        """The policy with its current weights."""
        return self.recipe.models.policy.model

    @property
    def value_model(self) -> nn.Module | None:
        """The critic with its current weights; None if advantages need none. Its trunk may be the policy's."""
        return None if self.recipe.models.critic is None else self.recipe.models.critic.model

    def train(self) -> TrainOutput:
        """Run all updates, evaluate, and save policy and critic under `output_dir`."""
        r = self.recipe
        folder = Path(r.config.output_dir)
        with r.report as report, closing(r.rewards), closing(r.engine):
            report.begin(r.introduction)
            train(r, self.state)
            r.checkpoint.save_final(self.state)
            if r.config.push_to_hub and r.backend.rank == 0:
                push_to_hub(folder / "policy", r.config.hub_model_id or folder.resolve().name)
            report.end()
        return TrainOutput(
            self.state.update,
            self.state.episodes,
            folder / "policy",
            None if self.value_model is None else folder / "value",
        )

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy as a model folder of its own; `train` has already left `policy/` and `value/`."""
        folder = Path(output_dir if output_dir is not None else self.recipe.config.output_dir)
        self.recipe.checkpoint.export_policy(folder, self.state)

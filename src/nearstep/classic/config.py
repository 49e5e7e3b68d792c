"""The settings of TRL's PPOTrainer up to 0.11, and what they are here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from nearstep.config.old_names import OF_CLASSIC, OldNames
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import Problem, Settings, accepts_old_names, option

# What kl_penalty is here; of `full` the trainer gives the KL itself.
ESTIMATORS: Mapping[str, Literal["k1", "k2", "abs"]] = {"kl": "k1", "abs": "abs", "mse": "k2", "full": "k1"}


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class ClassicPPOConfig(Settings):
    """TRL's names and defaults up to 0.11. `batch_size` rows of each process make one `step`.

    Raises ConfigError for unknown names, with the nearest; settings that have no counterpart are refused with the
    reason, or told where leaving them out loses nothing.
    """

    old_names: ClassVar[OldNames] = OF_CLASSIC

    model_name: str | None = option(None, "the policy, if PPOTrainer is given none", is_place=True)
    output_dir: str = option("nearstep-classic", "folder for metrics, episodes and models", is_place=True)
    query_dataset: str | None = option(None, "name of the data set, for the script to read", is_place=True)
    reward_model: str | None = option(None, "name of a reward model, for the script to read", is_place=True)
    seed: int = option(0, "every random number derives from it", at_least=0)
    log_with: str | None = option(None, "tracker: wandb, tensorboard, …; needs log_stats to be called")
    exp_name: str | None = option(None, "name of the run at trackers")
    steps: int = option(20000, "episodes of the run, for the reports alone: your loop says when it ends", at_least=1)
    learning_rate: float = option(1.41e-5, "step size of policy and value head, constant", at_least=0)
    adap_kl_ctrl: bool = option(True, "let the weight of the KL penalty adapt towards target")
    init_kl_coef: float = option(0.2, "first weight of the KL penalty", at_least=0)
    kl_penalty: Literal["kl", "abs", "mse", "full"] = option(
        "kl",
        "kl: log-ratio to the reference; abs: its size; mse: half its square; full: KL over the whole vocabulary, by "
        "two more passes over the rows",
    )
    target: float = option(6.0, "KL to be kept", above=0)
    horizon: int = option(10000, "episodes over which the weight adapts", at_least=1)
    gamma: float = option(1.0, "discount per token", at_least=0, at_most=1)
    lam: float = option(0.95, "lambda of generalised advantage estimation", at_least=0, at_most=1)
    cliprange: float = option(0.2, "how far a ratio may leave 1", above=0)
    cliprange_value: float = option(0.2, "how far a value may move from its value at rollout", above=0)
    vf_coef: float = option(0.1, "weight of the value loss", at_least=0)
    batch_size: int = option(128, "rows that each process gives to step", at_least=1)
    mini_batch_size: int = option(128, "rows at a time", at_least=1)
    gradient_accumulation_steps: int = option(1, "mini-batches to an optimizer step", at_least=1)
    ppo_epochs: int = option(4, "passes over the rows of a step", at_least=1)
    max_grad_norm: float | None = option(None, "norm to which gradients are cut", above=0)
    early_stopping: bool = option(False, "end the passes of a step once the policy has moved by target_kl")
    target_kl: float = option(1.0, "early_stopping: how far", above=0)
    use_score_scaling: bool = option(False, "divide scores by their standard deviation so far")
    use_score_norm: bool = option(False, "use_score_scaling: take their mean away as well")
    score_clip: float | None = option(None, "scores are cut to ± this", above=0)
    whiten_rewards: bool = option(False, "scale per-token rewards to unit variance")
    use_cpu: bool = option(False, "stay on the CPU even where there is a GPU")

    def problems(self) -> Iterator[Problem]:
        """Sizes that do not divide each other."""
        rows = self.mini_batch_size * self.gradient_accumulation_steps
        if self.batch_size % rows:
            yield Problem(
                f"batch_size = {self.batch_size} is no multiple of mini_batch_size × gradient_accumulation_steps = "
                f"{rows}",
                ("batch_size", "mini_batch_size", "gradient_accumulation_steps"),
            )
        if self.use_score_norm and not self.use_score_scaling:
            yield Problem("use_score_norm needs use_score_scaling", ("use_score_norm", "use_score_scaling"))

    def ours(self, processes: int) -> PPOConfig:
        """The same run in our settings. The value head stands on the policy's trunk; log-probs are untempered."""
        adaptive = self.adap_kl_ctrl and self.init_kl_coef > 0
        scaling: Literal["scale", "shift_and_scale"] = "shift_and_scale" if self.use_score_norm else "scale"
        return PPOConfig(
            model_name_or_path=self.model_name,
            output_dir=self.output_dir,
            run_name=self.exp_name,
            seed=self.seed,
            use_cpu=self.use_cpu,
            total_episodes=self.steps,
            learning_rate=self.learning_rate,
            lr_scheduler_type="constant",
            kl_coef=self.init_kl_coef,
            kl_estimator=ESTIMATORS[self.kl_penalty],
            measure_kl=True,
            gamma=self.gamma,
            lam=self.lam,
            cliprange=self.cliprange,
            cliprange_value=self.cliprange_value,
            vf_coef=self.vf_coef,
            critic_trunk="shared",
            batch_size=self.batch_size * processes,
            num_mini_batches=self.batch_size // (self.mini_batch_size * self.gradient_accumulation_steps),
            per_device_train_batch_size=self.mini_batch_size,
            num_ppo_epochs=self.ppo_epochs,
            max_grad_norm=self.max_grad_norm,
            reward_clip=self.score_clip,
            whiten_rewards=self.whiten_rewards,
            temperature=1.0,
            stop_token="eos",
            num_sample_generations=0,
            kl_target=self.target if adaptive else None,
            kl_horizon=self.horizon if adaptive else PPOConfig.kl_horizon,
            report_to=() if self.log_with is None else (self.log_with,),
            early_stop_kl=self.target_kl if self.early_stopping else None,
            normalize_scores=scaling if self.use_score_scaling else "none",
        )

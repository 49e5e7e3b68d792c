"""Which settings every training run has, of a policy or of a reward model."""

from dataclasses import dataclass
from typing import Literal

from nearstep.common.trust import Trust, trust_of
from nearstep.config.conversion import ModelName
from nearstep.config.settings import Settings, option
from nearstep.config.trusting import pickled_weights, trusted_code

LORA = ("lora_r", "lora_alpha", "lora_target_modules", "lora_modules_to_save", "use_dora", "use_rslora")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Where a run writes, and where it runs."""

    output_dir: str = option(
        "nearstep-output", "folder for models, metrics and samples; made if missing", is_place=True
    )
    run_name: str | None = option(None, "name of the run at trackers; the folder's name if not given")
    seed: int = option(42, "every random number of the run derives from it", at_least=0)
    use_cpu: bool = option(False, "stay on the CPU even where there is a GPU; on a GPU nothing has been run yet")
    wait_timeout_seconds: float | None = option(
        1800.0,
        "longest wait without a sign of life of another process, an engine, a reward or a save; then the run ends; "
        "'none' for no limit",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """The model that is trained, its type and its adapters."""

    model_name_or_path: str | None = option(
        None, "model to train, and its tokenizer: a folder or a hub name", is_place=True
    )
    dtype: Literal["float32", "bfloat16", "float64"] = option(
        "float32", "type of the weights of models that are loaded from a path"
    )
    bf16: bool = option(False, "compute forward and backward in bfloat16 (autocast), weights stay as they are")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    use_peft: bool = option(False, "train LoRA adapters instead of all weights")
    lora_r: int = option(16, "rank of the adapters", at_least=1)
    lora_alpha: int = option(32, "scale of the adapters (alpha / rank)", at_least=1)
    lora_target_modules: tuple[str, ...] | None = option(
        None, "modules that get adapters: names, all-linear, or one pattern; peft's choice if not given"
    )
    lora_modules_to_save: tuple[str, ...] | None = option(
        None, "modules that train whole beside the adapters, and are saved with them (embed_tokens lm_head)"
    )
    use_dora: bool = option(False, "adapters that learn direction and length of a weight apart (DoRA, 2402.09353)")
    use_rslora: bool = option(False, "scale adapters by alpha / √rank (rsLoRA, 2312.03732), for high ranks")
    trust_remote_code: tuple[ModelName, ...] | None = trusted_code()
    allow_pickled_weights: bool = pickled_weights()

    @property
    def trust(self) -> Trust:
        """What models may bring along."""
        return trust_of(self)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """How gradients become steps."""

    learning_rate: float = option(3e-6, "peak step size, of policy and critic", at_least=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = option(
        "linear", "course of the learning rate over the updates, stepped once per update"
    )
    warmup_steps: int = option(0, "updates over which the learning rate rises", at_least=0)
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "sgd"] = option(
        "adamw_torch_fused",
        "the optimizer; fused takes a step in one pass over the weights, 8bit keeps moments in a byte (bitsandbytes)",
    )
    master_weights: bool = option(
        True, "where weights are narrower than float32, step a float32 copy of them: else small steps round to nothing"
    )
    weight_decay: float = option(0.0, "decoupled weight decay", at_least=0)
    adam_beta1: float = option(0.9, "decay of Adam's first moment", at_least=0, below=1)
    adam_beta2: float = option(0.999, "decay of Adam's second moment", at_least=0, below=1)
    adam_epsilon: float = option(1e-8, "Adam's epsilon; the N+ study used 1e-5", above=0)
    max_grad_norm: float | None = option(1.0, "norm to which all gradients together are cut; 'none' for none", above=0)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What is logged, evaluated, saved and uploaded."""

    logging_steps: int = option(1, "updates between two entries of the metrics", at_least=1)
    report_to: tuple[str, ...] = option((), "trackers: tensorboard, wandb, trackio, … (transformers' integrations)")
    eval_steps: int | None = option(None, "updates between two evaluations; only at the end if not given", at_least=1)
    save_steps: int | None = option(
        None, "updates between two checkpoints; models alone, at the end, if not given", at_least=1
    )
    save_total_limit: int | None = option(None, "how many of the checkpoints made by save_steps are kept", at_least=1)
    push_to_hub: bool = option(False, "upload the final model to the hub")
    hub_model_id: str | None = option(None, "repository for push_to_hub; the folder's name if not given")

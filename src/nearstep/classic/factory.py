"""`create_rl_trainer`: a trainer in one call, by the names and defaults of AlignTune's guide to PPO."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearstep.common.errors import ConfigError, shorten
from nearstep.common.import_order import import_unsloth
from nearstep.common.spelling import nearest
from nearstep.common.telling import tell
from nearstep.config.old_names import DPPO
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import RECIPES
from nearstep.config.settings import current_name

# Imported when they are needed: unsloth must come before transformers, which they bring.
if TYPE_CHECKING:
    from nearstep.trainer import PPOTrainer
else:
    PPOTrainer = object

# What holds where neither the call nor a recipe says anything; the rest are PPOConfig's own defaults.
DEFAULTS: Mapping[str, object] = {
    "cliprange": 0.2, "kl_coef": 0.1, "vf_coef": 0.1, "gamma": 1.0, "lam": 0.95, "num_generations": 8,
    "num_ppo_epochs": 4,
}  # fmt: skip
BACKENDS = ("transformers", "trl", "unsloth")
SHOWN = ("kl_coef", "cliprange", "vf_coef", "gamma", "lam", "num_ppo_epochs", "learning_rate")


def create_rl_trainer(
    model_name: str,
    dataset_name: str | Sequence[str],
    algorithm: str = "ppo",
    backend: str = "transformers",
    *,
    reward_model_name: str | None = None,
    reward_model_path: object = None,
    reward_functions: Sequence[str | Callable[..., Any]] = (),
    reward_function_weights: Sequence[int | float] = (),
    num_epochs: int | float | None = None,
    batch_size: int | None = None,
    **settings: object,
) -> PPOTrainer:
    """A trainer of PPO: `algorithm` is "ppo" or a recipe such as "decoupled" or "divergence".

    `batch_size` counts prompts, of which each gets `num_generations` responses; an update is on all of them. Without it
    the batch follows from `per_device_train_batch_size` and so on. `reward_function_weights` belong to
    `reward_functions`; a reward model beside them weighs 1. `settings` are any others of PPOConfig: what is given wins
    over the recipe, the recipe over the defaults that seven settings have here (kl_coef 0.1, num_generations 8; the
    others as in PPOConfig). `backend` "unsloth" has it load the policy, and LoRA trains (`model_loader`, `use_peft`; on
    a GPU `load_in_4bit` and dtype bfloat16 too). What was chosen is told. Models as objects are for PPOTrainer.

    Raises ConfigError for an unknown name, algorithm or backend, with the nearest that there is, and what PPOTrainer
    raises.
    """
    _check_backend(backend)
    recipe = _recipe(algorithm)
    given = {"model_name_or_path": model_name, "dataset_name": dataset_name, **settings}
    named = {current_name(name) for name in settings}
    loading = _by_unsloth(given) if backend == "unsloth" else {}
    for name in ("reward_weights", "reward_funcs"):
        if name in named:
            raise ConfigError(f"{name}: create_rl_trainer has reward_functions and reward_function_weights for it")
    chosen = {name: value for name, value in {**DEFAULTS, **loading, **recipe}.items() if name not in named} | given
    functions = _several("reward_functions", reward_functions)
    if reward_model_name is not None and reward_model_path is not None:
        raise ConfigError("reward_model_name and reward_model_path are the same setting: give one")
    reward_model = reward_model_name if reward_model_path is None else reward_model_path
    weights = _several("reward_function_weights", reward_function_weights)
    if len(weights) not in (0, len(functions)):
        raise ConfigError(
            f"reward_function_weights has {len(weights)} weight(s) for {len(functions)} reward_functions: give one for "
            "each, or none"
        )
    if reward_model is not None:
        chosen["reward_model_path"] = reward_model
    if weights:
        chosen["reward_weights"] = [*([] if reward_model is None else [1.0]), *weights]
    if num_epochs is not None:
        chosen["num_train_epochs"] = num_epochs
    if batch_size is not None:
        chosen["batch_size"] = _rows(batch_size, chosen)
    config = PPOConfig(**chosen)  # type: ignore[arg-type]
    from nearstep.trainer import PPOTrainer

    tell(_choice(config, algorithm, backend, functions))
    return PPOTrainer(args=config, reward_funcs=functions)


def _check_backend(backend: str) -> None:
    """Raise ConfigError for one that is not here."""
    if backend not in BACKENDS:
        near = nearest(str(backend), BACKENDS)
        meant = f"did you mean {near}?" if near else f"there are {', '.join(BACKENDS)}"
        raise ConfigError(f"backend = {shorten(backend)} is unknown; {meant}")
    if backend == "trl":
        tell('backend = "trl": TRL has no PPO since 1.13, so it is transformers\' models under the loop of nearstep')


def _by_unsloth(given: Mapping[str, object]) -> dict[str, object]:
    """Import unsloth, before what it changes, and the settings by which it loads the policy and trains LoRA on it.

    Adapters that lie in the policy's folder train on. Raises ConfigError as `import_unsloth` does.
    """
    on_cpu = bool(given.get("use_cpu"))
    import_unsloth('backend = "unsloth"', on_cpu=on_cpu)
    import torch

    policy = given.get("sft_model_path") or given["model_name_or_path"]
    adapted = Path(str(policy), "adapter_config.json").is_file()
    found: dict[str, object] = {"model_loader": "unsloth", "use_peft": not adapted}
    if torch.cuda.is_available() and not on_cpu:
        found |= {"dtype": "bfloat16"} if _is_packed(str(policy)) else {"dtype": "bfloat16", "load_in_4bit": True}
    return found


def _is_packed(policy: str) -> bool:
    """Whether a model's weights are in 4 bits already: by its name, or by the configuration in its folder."""
    file = Path(policy, "config.json")
    return policy.endswith("-bnb-4bit") or (file.is_file() and "quantization_config" in file.read_text("utf-8"))


def _recipe(algorithm: str) -> Mapping[str, object]:
    """The settings that an algorithm's name stands for. Raises ConfigError for one that is not here."""
    name = str(algorithm).lower()
    if name == "ppo":
        return {}
    if name in RECIPES:
        return RECIPES[name]
    if name == "dppo":
        raise ConfigError(f"algorithm = {algorithm}: {DPPO}")
    near = nearest(name, ("ppo", *RECIPES)) if len(name) > 4 else None  # grpo is no slip for gspo
    meant = f"did you mean {near}?" if near else f"there are ppo, {', '.join(RECIPES)}"
    if name == "grpo":
        meant = 'for GRPO\'s advantage without a critic give algorithm="ppo", advantage="group_normalized"'
    raise ConfigError(f"algorithm = {shorten(algorithm)} is not here; {meant}")


def _several(name: str, value: Any) -> list[Any]:
    """A list of entries. Raises ConfigError for one entry alone, of which a text would fall into letters."""
    if value is None:
        return []
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise ConfigError(f"{name}: got {shorten(value)}; give a list")
    return list(value)


def _rows(prompts: object, chosen: Mapping[str, object]) -> int:
    """Responses of an update. Raises ConfigError for numbers that are none."""
    generations = chosen.get("num_generations", 1)
    for name, number in (("batch_size", prompts), ("num_generations", generations)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"{name} = {shorten(number)} must be a whole number, at least 1")
    assert isinstance(prompts, int)
    assert isinstance(generations, int)
    return prompts * generations


def _choice(config: PPOConfig, algorithm: str, backend: str, functions: Sequence[Any]) -> str:
    """What was chosen, in two lines."""
    from nearstep.rewards.functions import function_name

    named = [each if isinstance(each, str) else function_name(each) for each in functions]
    rewards = [each for each in (config.reward_model_path, *named) if each is not None]
    weights = "" if config.reward_weights is None else f" by {', '.join(f'{each:g}' for each in config.reward_weights)}"
    numbers = ", ".join(f"{name} = {vars(config)[name]:g}" for name in SHOWN)
    batch = "" if config.batch_size is None else f"batch_size = {config.batch_size} responses, "
    if backend == "unsloth":
        batch = f"use_peft = {config.use_peft}, load_in_4bit = {config.load_in_4bit}, dtype = {config.dtype}, {batch}"
    return (
        f"create_rl_trainer: algorithm {algorithm} on backend {backend}; {config.model_name_or_path} on "
        f"{', '.join(config.dataset_name)} against {', '.join(rewards) or 'no reward'}{weights}, into "
        f"{config.output_dir}\nnearstep: {batch}num_generations = {config.num_generations}, {numbers}; all others are "
        "in run.yaml"
    )

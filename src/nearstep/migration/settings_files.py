"""How a settings file of another library is read: nested YAML or JSON, by names with dots."""

import re
from collections.abc import Iterator, Mapping

import yaml

from nearstep.common.errors import ConfigError
from nearstep.migration.foreign import Foreign
from nearstep.migration.launches import DECOUPLED

VERL_ROOTS = {"actor_rollout_ref", "critic", "algorithm", "reward_model", "trainer", "data"}
OF_ACCELERATE = {"distributed_type", "compute_environment", "num_machines", "downcast_bf16"}
_INTERPOLATION = re.compile(r"\$\{(?:oc\.select:\s*([\w.]+)|([\w.]+))(?:,\s*([^{}]*))?\}")
ALIGNTUNE_ROOTS = {"algo", "model", "datasets", "dataset", "train", "logging"}


def read_settings_file(text: str, name: str) -> Foreign:
    """Its settings. Raises ConfigError for text that is none, or whose library cannot be told."""
    try:
        root = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, Mapping) or not root:
        raise ConfigError(f"{name} holds no settings (name: value)")
    if isinstance(root.get("config"), Mapping) and "recipe" in root:  # a recipe of AlignTune
        root = root["config"]
    roots = set(map(str, root))
    if roots & OF_ACCELERATE:
        raise ConfigError(
            f"{name} is accelerate's own file, for `accelerate launch --config_file`: it says how processes start, and "
            "starts nearstep's too. Give the script or settings that it launches"
        )
    if isinstance(root.get("deepspeed"), Mapping) or "zero_optimization" in roots:
        raise ConfigError(f"{name} is a configuration of DeepSpeed: nearstep ppo reads it by deepspeed = {name}")
    flat = {key: value for key, value in _flat(root, "") if not key.endswith("_target_")}
    flat = {key: _resolved(value, key, flat) for key, value in flat.items()}
    if "actor_rollout_ref" in roots:
        return Foreign("verl", flat)
    if len(roots & ALIGNTUNE_ROOTS) >= 2 and ("model" in roots or "train" in roots):
        return Foreign("aligntune", flat)
    if flat.get("stage") == "trl_ppo":
        return Foreign("mindspeed", {key.replace("-", "_"): value for key, value in flat.items()})
    if roots & {"pretrain", "actor_learning_rate", "init_kl_coef", "prompt_data"}:
        return Foreign("openrlhf", flat)
    if roots & set(DECOUPLED):
        return Foreign("decoupled_draft", flat)
    if roots & {"divergence_type", "divergence_topk"}:
        return Foreign("trl_dppo", flat)
    return Foreign("trl", flat)


def _resolved(value: object, at: str, flat: Mapping[str, object], depth: int = 8) -> object:
    """What `${name}` and `${oc.select:name,default}` of OmegaConf stand for within the file; None for what is not."""
    if not isinstance(value, str) or depth == 0:
        return value
    found = _INTERPOLATION.fullmatch(value)
    if found is None:  # within a text: what is not in the file stays
        return _INTERPOLATION.sub(lambda part: str(_resolved(part[0], at, flat, depth - 1) or part[0]), value)
    name, default = found[1] or found[2], found[3]
    if name.startswith("."):
        name = at.rpartition(".")[0] + name
    if name in flat:
        return _resolved(flat[name], name, flat, depth - 1)
    return None if default is None else yaml.safe_load(default)


def _flat(node: Mapping[object, object], before: str) -> Iterator[tuple[str, object]]:
    """Names with dots; of a list of mappings their entries together, each name with the values of all."""
    for key, value in node.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            joined: dict[str, list[object]] = {}
            for entry in value:
                for inner, found in _flat(entry, f"{name}."):
                    joined.setdefault(inner, []).append(found)
            yield from ((inner, found[0] if len(found) == 1 else found) for inner, found in joined.items())
        else:
            yield name, value

"""How a settings file of another library is read: nested YAML or JSON, by names with dots."""

from collections.abc import Iterator, Mapping

import yaml

from nearstep.common.errors import ConfigError
from nearstep.migration.foreign import Foreign
from nearstep.migration.launches import DECOUPLED

VERL_ROOTS = {"actor_rollout_ref", "critic", "algorithm", "reward_model", "trainer", "data"}
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
    flat = dict(_flat(root, ""))
    roots = set(map(str, root))
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

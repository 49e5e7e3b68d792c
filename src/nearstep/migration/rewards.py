"""How rewards of other libraries are named here, and what their functions must become."""

from collections.abc import Mapping

from nearstep.migration.draft import SettingsDraft, is_true

OURS = "def NAME(completions, **columns) -> list of numbers"


def reward_url(value: object, draft: SettingsDraft) -> None:
    """OpenRLHF's remote_rm_url: an address, or a file with `reward_func`."""
    places = value if isinstance(value, list) else str(value).split(",")
    if str(places[0]).endswith(".py"):
        draft.settings["reward_funcs"] = [f"{places[0]}:reward_func"]
        draft.told.append(
            f"{places[0]}: reward_func(queries, prompts, labels) becomes {OURS.replace('NAME', 'reward_func')}; the "
            "label is a column"
        )
        return
    draft.settings["reward_url"] = places[0]
    draft.told.append(
        f"{places[0]} must answer as `nearstep serve-reward` does (docs/rewards.md), not as serve_rm: start that for a "
        "model, or name a function by reward_funcs"
    )
    for place in places[1:]:
        draft.lose("remote_rm_url", place, "one reward server; functions and models stand beside it")


def reward_models(value: object, draft: SettingsDraft) -> None:
    """OpenRLHF's reward_pretrain: one model, or several with commas between them."""
    first, *others = [each.strip() for each in str(value).split(",")]
    draft.settings["reward_model_path"] = first
    for each in others:
        draft.lose("reward_pretrain", each, "one reward model; functions, and a reward server, stand beside it")


def reward_file(special: Mapping[str, object], draft: SettingsDraft) -> None:
    """verl's custom_reward_function."""
    if special.get("reward_file") in (None, "null"):
        if "reward_model_path" not in draft.settings:
            draft.told.append(
                "the reward was chosen by data_source there: name it by reward_funcs (nearstep rewards lists what is "
                "built in, such as exact_match)"
            )
        return
    name = special.get("reward_name", "compute_score")
    draft.settings["reward_funcs"] = [f"{special['reward_file']}:{name}"]
    draft.told.append(
        f"{name}(data_source, solution_str, ground_truth, extra_info) becomes {OURS.replace('NAME', str(name))}; "
        "reward_model.ground_truth and the like are columns"
    )


def reward_enabled(value: object, draft: SettingsDraft) -> None:
    """verl's reward_model.enable."""
    if not is_true(value):
        draft.settings.pop("reward_model_path", None)


def weights_beside_a_model(draft: SettingsDraft) -> None:
    """AlignTune's weights are those of its functions; a reward model beside them weighs 1, and comes first here."""
    functions, weights = draft.settings.get("reward_funcs"), draft.settings.get("reward_weights")
    if "reward_model_path" not in draft.settings or not isinstance(functions, list) or not isinstance(weights, list):
        return
    if len(weights) == len(functions):
        draft.settings["reward_weights"] = [1.0, *weights]
        draft.told.append("reward_weights: the reward model's comes first, 1")

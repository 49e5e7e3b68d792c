"""Where the KL to the reference stands there, in the reward or in the loss, and how it is estimated."""

from collections.abc import Mapping

from nearstep.migration.draft import SettingsDraft, is_true


def kl_of_verl(special: Mapping[str, object], draft: SettingsDraft) -> None:
    """verl has a KL in the reward, in the loss, or none, each with a weight of its own."""
    in_reward, in_loss = is_true(special.get("kl_in_reward")), is_true(special.get("kl_in_loss"))
    if in_loss:
        kind = str(special.get("kl_loss_type", "low_var_kl"))
        estimator = {"kl": "k2", "k1": "k2", "mse": "k2", "k2": "k2", "abs": "k2"}.get(kind, "k3")
        draft.settings |= {"kl_in": "loss", "kl_estimator": estimator, "kl_coef": special.get("kl_loss_coef", 0.001)}
        if in_reward:
            draft.told.append("a KL both in the reward and in the loss: here it is in the loss alone")
        if kind in ("kl", "k1", "abs"):
            draft.told.append(f"kl_loss_type = {kind}: k2, whose gradient is that of the KL")
    elif not in_reward:
        draft.settings["kl_coef"] = 0.0
        draft.settings.pop("kl_estimator", None)
    if in_reward and not in_loss and special.get("kl_type") == "adaptive":
        draft.settings["kl_target"] = special.get("kl_target", 0.1)
        draft.settings["kl_horizon"] = special.get("kl_horizon", 10000)


def in_loss(special: Mapping[str, object], draft: SettingsDraft) -> None:
    """OpenRLHF's switch: the estimator is that of the file, k1 apart."""
    if not is_true(special.get("kl_in_loss")):
        return
    draft.settings["kl_in"] = "loss"
    if draft.settings.get("kl_estimator", "k1") == "k1":
        draft.settings["kl_estimator"] = "k2"
        draft.told.append("kl_estimator: k2, since the gradient of k1 in a loss is 0 on average")


def beta(value: object, draft: SettingsDraft) -> None:
    number = draft.number(value)
    if number is None or number > 0:
        draft.settings |= {"kl_coef": value, "kl_in": "loss", "kl_estimator": "k3"}

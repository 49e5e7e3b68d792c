"""What of a run's settings a plan does not reckon with, in words: how much room is to be left for it."""

from nearstep.config.planning import PlanConfig
from nearstep.rewards.builtin.spec import meaning


def unplanned(config: PlanConfig) -> list[str]:
    """A sentence for each; none where all is reckoned with."""
    judges = [entry for entry in config.reward_funcs if meaning(entry) == "judge"]
    cases = {
        f"engine = {config.engine}: its memory, its time and copies of the policy in it are not planned.": (
            config.engine != "transformers"
        ),
        f"max_staleness = {config.max_staleness}: the process that samples ahead has a copy of the policy and its own "
        "keys and values, and works beside the update: neither is planned.": config.max_staleness > 0,
        "ptx_dataset_name: passes over texts are not planned.": bool(config.ptx_dataset_name),
        f"{', '.join(judges)}: judges are not planned; leave room for what runs on these devices.": bool(judges),
    }
    return [sentence for sentence, is_asked in cases.items() if is_asked]

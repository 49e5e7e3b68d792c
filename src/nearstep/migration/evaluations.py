"""What evaluation there is evaluated on."""

from nearstep.migration.draft import SettingsDraft
from nearstep.migration.foreign import Foreign

EVAL_DATA = ("eval_dataset_name", "dataset_test_split", "num_eval_rows")


def with_eval_data(draft: SettingsDraft, foreign: Foreign) -> None:
    """TRL's scripts evaluate on the split `test` unless told; with nothing to evaluate on, nothing is asked."""
    if draft.settings.keys() & {*EVAL_DATA} or "eval_steps" not in draft.settings:
        return
    if foreign.library == "trl" and str(foreign.settings.get("eval_strategy", "no")) != "no":
        draft.settings["dataset_test_split"] = "test"
        draft.told.append("dataset_test_split = test is the default of TRL's scripts; num_eval_rows holds prompts out")
        return
    for name in ("eval_steps", "eval_on_start"):
        if name in draft.settings:
            draft.lose(name, draft.settings.pop(name), f"nothing to evaluate on is named: give {EVAL_DATA[0]} or "
                                                       f"{EVAL_DATA[2]}")  # fmt: skip

"""How a reward function that is named in a setting becomes a callable."""

from nearstep.common.errors import RewardError, shorten
from nearstep.common.plugins import load_object
from nearstep.rewards.builtin.spec import meaning, read_spec
from nearstep.rewards.functions import RewardFunction
from nearstep.rewards.judge_spec import JudgeSpec, read_judge_spec


def load_function(spec: str) -> RewardFunction:
    """The built-in reward of "name:parameter=value", a judge ("judge:…"), or `name` of "path/to/file.py:name".

    Of a class in a file it is an instance made without arguments. Raises a ConfigError for an unknown built-in or
    parameter, a RewardError where a file cannot be loaded (see `load_object`) or holds what cannot be called.
    """
    if meaning(spec) == "built-in":
        return read_spec(spec)
    if meaning(spec) == "judge":
        return _judge(read_judge_spec(spec))
    found = load_object(spec, kind="reward function", error=RewardError)
    if not callable(found):
        raise RewardError(f"reward function {spec!r} is {shorten(found)}, which cannot be called.")
    return found


def _judge(spec: JudgeSpec) -> RewardFunction:
    from nearstep.rewards.judge_reward import JudgeReward
    from nearstep.rewards.judging import load_judge

    return JudgeReward(load_judge(spec.config), spec.against)

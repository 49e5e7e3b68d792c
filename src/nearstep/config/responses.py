"""Which settings of lengths and of sampling clash, and what greedy and endless responses cost."""

from collections.abc import Iterator

from nearstep.config.sections import AllSettings
from nearstep.config.settings import Problem


def response_problems(config: AllSettings) -> Iterator[Problem]:
    """Lengths that leave nothing for a response, and greedy responses that should differ."""
    if config.max_length is not None and (config.max_prompt_length or 0) >= config.max_length:
        yield Problem(
            f"max_prompt_length = {config.max_prompt_length} leaves no token of max_length = {config.max_length} for a "
            "response",
            ("max_length", "max_prompt_length"),
        )
    if not config.do_sample and config.num_generations > 1:
        yield Problem(
            f"do_sample = false makes the num_generations = {config.num_generations} responses to a prompt alike: "
            "sample them, or take one",
            ("do_sample", "num_generations"),
        )


def response_remarks(config: AllSettings) -> Iterator[str]:
    """What responses without a stop token, and greedy ones, cost."""
    if config.stop_token is None and config.stop_token_id is None:
        yield "without a stop token all response_length tokens of a response are scored and trained on"
    if not config.do_sample:
        yield (
            "do_sample = false: every response is the policy's most probable one. Nothing else is tried, and ratios of "
            "tokens that were not sampled correct nothing: PPO is made for sampled responses (temperature says how "
            "bold they are)"
        )

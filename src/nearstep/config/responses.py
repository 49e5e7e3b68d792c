"""Which settings of lengths and of sampling clash, and what greedy and endless responses cost."""

from collections.abc import Iterator

from nearstep.config.sections import AllSettings
from nearstep.config.settings import Problem

RECORD_WHOLE = ("continuous_batching", "vllm", "vllm_server")  # engines, where they are greedy


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
    if config.max_length is not None and config.overlong_buffer is not None:
        yield Problem(
            "overlong_buffer counts back from response_length, and max_length cuts responses behind long prompts "
            "before that: leave one out (max_prompt_length with response_length bounds both together, too)",
            ("overlong_buffer", "max_length"),
        )
    whole = (config.temperature, config.top_p, config.top_k) == (1, 1, 0)
    if not config.do_sample and config.engine in RECORD_WHOLE and not whole:
        yield Problem(
            f"engine = {config.engine} records log-probs of greedy tokens at temperature 1 and without cuts, and the "
            f"trainer would take them at temperature = {config.temperature}, top_p = {config.top_p}, top_k = "
            f"{config.top_k}: set 1, 1 and 0 with do_sample = false, or use engine = transformers",
            ("do_sample", "engine", "temperature"),
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

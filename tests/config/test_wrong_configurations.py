"""R27: every wrong configuration is refused in words that help, and all its problems come in one message."""

import pytest

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig

WRONG = {
    "typo": ({"kl_coeff": 0.1}, "unknown setting kl_coeff; did you mean kl_coef?"),
    "typo of an old name": ({"max_new_token": 9}, "unknown setting max_new_token; did you mean response_length?"),
    "nothing like it": ({"zzz": 1}, "unknown setting zzz; there is none with a similar name"),
    "text for a number": ({"learning_rate": "1e-6"}, "learning_rate = '1e-6' must be a number"),
    "number for text": ({"run_name": 3}, "run_name = 3 must be text"),
    "truth for a count": ({"num_ppo_epochs": True}, "num_ppo_epochs = True must be a whole number"),
    "truth for a number": ({"gamma": False}, "gamma = False must be a number"),
    "count for truth": ({"bf16": 1}, "bf16 = 1 must be true or false"),
    "half a count": ({"total_episodes": 10.5}, "total_episodes = 10.5 must be a whole number"),
    "none where there must be a value": ({"seed": None}, "seed = None must be a whole number"),
    "empty text": ({"output_dir": ""}, "output_dir = '' must be text that is not empty"),
    "no such choice": (
        {"optim": "adam"},
        "optim = 'adam' must be one of adamw_torch, adamw_torch_fused, adamw_8bit, sgd",
    ),
    "an object as a reward": ({"reward_funcs": [len]}, "reward_funcs = [<built-in function len>] must be text"),
    "wrong entry": ({"reward_weights": [1, "2"]}, "reward_weights = [1, '2'] must be a number"),
    "wrong type under an old name": ({"lr": "fast"}, "lr = 'fast' must be a number"),
    "not a number": ({"vf_coef": float("nan")}, "vf_coef = nan must be a finite number"),
    "infinite": ({"max_grad_norm": float("inf")}, "max_grad_norm = inf must be a finite number"),
    "no batch": ({"per_device_train_batch_size": 0}, "per_device_train_batch_size = 0 must be at least 1"),
    "negative coefficient": ({"kl_coef": -0.1}, "kl_coef = -0.1 must be at least 0"),
    "negative penalty": ({"missing_eos_penalty": -1}, "missing_eos_penalty = -1 must be at least 0"),
    "greedy": ({"temperature": 0}, "temperature = 0 must be above 0"),
    "discount": ({"gamma": 1.01}, "gamma = 1.01 must be at least 0 and at most 1"),
    "no token left": ({"top_p": 0.0}, "top_p = 0.0 must be above 0 and at most 1"),
    "negative stop token": ({"stop_token_id": [2, -1]}, "stop_token_id = [2, -1] must be at least 0"),
    "no clipping": ({"cliprange": 0}, "cliprange = 0 must be above 0"),
    "Adam": ({"adam_beta2": 1}, "adam_beta2 = 1 must be at least 0 and below 1"),
    "same setting twice": ({"lr": 1e-6, "learning_rate": 1e-6}, "lr and learning_rate are the same setting"),
    "two stops": ({"stop_token": "\n", "stop_token_id": 5}, "stop_token and stop_token_id both say"),
    "D8: a stop id of 0 is an id": ({"stop_token": "\n", "stop_token_id": 0}, "stop_token and stop_token_id both say"),
    "keywords that are none": ({"chat_template_kwargs": "enable_thinking"}, "must be a mapping such as"),
    "a keyword of ours": ({"chat_template_kwargs": {"add_generation_prompt": False}}, "nearstep gives these itself"),
    "a keyword that is no name": ({"chat_template_kwargs": {"a b": 1}}, "must be a mapping such as"),
    "no stop ids": ({"stop_token_id": ()}, "stop_token_id is empty"),
    "two penalties": ({"missing_eos_penalty": 1, "non_eos_penalty": True}, "subtracts and non_eos_penalty replaces"),
    "penalty for all": ({"non_eos_penalty": True, "stop_token": None}, "non_eos_penalty needs a stop token"),
    "subtracted from all": ({"missing_eos_penalty": 1, "stop_token": None}, "missing_eos_penalty needs a stop token"),
    "reward without function": ({"reward_funcs": "rewards.py"}, "rewards.py names no function; write file.py:name"),
    "too few weights": (
        {"reward_model_path": "rm", "reward_funcs": "a.py:f", "reward_weights": 1},
        "reward_weights has 1 weight(s) for 2 rewards",
    ),
    "no retry": ({"on_reward_error": "retry", "reward_retries": 0}, "reward_retries = 0 must be at least 1"),
    "no such policy": ({"on_reward_error": "zero"}, "on_reward_error = 'zero' must be one of raise, retry, drop"),
    "no time": ({"reward_timeout_seconds": 0}, "reward_timeout_seconds = 0 must be above 0"),
    "no worker": ({"reward_workers": 0}, "reward_workers = 0 must be at least 1"),
    "no address": ({"reward_url": "127.0.0.1:8000"}, "reward_url must be an address such as http://127.0.0.1:8000"),
    "a file": ({"reward_url": "file:///etc/passwd"}, "reward_url must be an address such as"),
    "a port of words": ({"reward_url": "http://h:one/score"}, "reward_url is no address"),
    "a password": ({"reward_url": "http://u:canary@h/score"}, "reward_url must have no user, password, query"),
    "a key": ({"reward_url": "https://h/score?key=canary"}, "reward_url must have no user, password, query"),
    "a token for its variable": (
        {"reward_url": "https://h/score", "reward_url_token_env": "canary-token"},
        "reward_url_token_env is not the name of an environment variable",
    ),
    "too few weights with a server": (
        {"reward_url": "https://h/score", "reward_funcs": "a.py:f", "reward_weights": 1},
        "reward_weights has 1 weight(s) for 2 rewards",
    ),
    "uneven groups": (
        {"batch_size": 10, "num_generations": 4},
        "batch_size = 10 is no multiple of num_generations = 4",
    ),
    "more cuts than rows": (
        {"batch_size": 4, "num_mini_batches": 8},
        "num_mini_batches = 8 is more than batch_size = 4",
    ),
    "no gradient on average": ({"kl_in": "loss"}, "kl_in = loss needs kl_estimator = k2 or k3"),
    "a penalty on what is not measured": ({"measure_kl": False}, "a KL penalty needs the KL"),
    "nothing to adapt": ({"kl_target": 6, "kl_coef": 0}, "kl_coef = 0 stays 0"),
    "one ratio for a row of distributions": (
        {"ratio_level": "row", "trust_region": "topk_kl"},
        "trust_region = topk_kl compares distributions of single tokens",
    ),
    "one ratio for tokens that are compared": (
        {"ratio_level": "turn", "trust_region": "sat"},
        "trust_region = sat compares the ratios of a row's tokens: with ratio_level = turn use one of clip, ",
    ),
    "floor above cap": (
        {"anchor": "recomputed", "correction_low": 3, "correction_high": 2},
        "correction_low = 3 is above correction_high = 2",
    ),
    "a limit on what is not held": (
        {"anchor": "recomputed", "correction_measure": "k3"},
        "correction_action = truncate holds the ratio at its limits, and correction_measure = k3",
    ),
    "the largest of one token": (
        {"anchor": "recomputed", "correction_action": "mask", "correction_measure": "largest"},
        "use correction_level = row or row_mean",
    ),
    "a lower limit of a divergence": (
        {"anchor": "recomputed", "correction_action": "mask", "correction_measure": "k2", "correction_low": 0.1},
        "correction_measure = k2 is 0 where engine and trainer agree",
    ),
    "an unknown correction": ({"correction": "ticepop"}, "correction = 'ticepop' is unknown; did you mean icepop?"),
    "all cut off": (
        {"mask_truncated_completions": True, "stop_token": None},
        "mask_truncated_completions needs a stop token",
    ),
    "penalty before the start": (
        {"overlong_buffer": 100, "response_length": 53},
        "overlong_buffer = 100 is more than response_length = 53",
    ),
    "another library's threshold": ({"epsilon": 0.2}, "give cliprange for clip, divergence_low for divergences"),
    "two precisions": ({"bf16": True, "dtype": "float64"}, "bf16 computes in bfloat16"),
    "graphs of no GPU": (
        {"decode_graphs": True, "use_cpu": True},
        "decode_graphs replays CUDA graphs and use_cpu leaves the GPU",
    ),
    "greedy groups": ({"do_sample": False, "num_generations": 2}, "do_sample = false makes the num_generations = 2"),
    "greedy elsewhere": (
        {"do_sample": False, "engine": "vllm"},
        "engine = vllm records log-probs of greedy tokens at temperature 1 and without cuts",
    ),
    "two ends": (
        {"max_length": 90, "overlong_buffer": 9},
        "overlong_buffer counts back from response_length, and max_length cuts responses",
    ),
    "no room for a response": ({"max_length": 9, "max_prompt_length": 9}, "leaves no token of max_length = 9"),
    "half precision": ({"fp16": True}, "fp16 = True: float16 loses small gradients; use bf16"),
    "steps": ({"max_steps": 100}, "max_steps = 100: the length of a run is total_episodes"),
    "size that follows": ({"mini_batch_size": 16}, "mini_batch_size = 16: it follows from"),
    "one trunk, two times": (
        {"critic": "decoupled", "critic_trunk": "shared"},
        "critic = decoupled trains the critic apart from the policy, and with critic_trunk = shared they have one",
    ),
    "two critics": (
        {"critic_trunk": "shared", "value_model_path": "critic"},
        "value_model_path is a model of its own, and with critic_trunk = shared",
    ),
    "resume": ({"resume_from_checkpoint": True}, "resume_from_checkpoint = True must be text"),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_configuration_is_refused_in_words(given, words):
    with pytest.raises(ConfigError) as refusal:
        PPOConfig(**given)
    title, *problems = str(refusal.value).splitlines()
    assert title == "1 problem in the settings:"
    assert len(problems) == 1
    assert words in problems[0]
    assert "canary" not in problems[0]  # what may be a secret is not repeated


def test_there_are_at_least_thirty():
    assert len(WRONG) >= 30


def test_all_problems_come_in_one_message():
    with pytest.raises(ConfigError) as refusal:
        PPOConfig(
            kl_coeff=0.1, learning_rate="1e-6", temperature=0, do_sample=3, batch_size=4, num_mini_batches=8,
            missing_eos_penalty=1, non_eos_penalty=True,
        )  # fmt: skip
    message = str(refusal.value)
    assert message.startswith("6 problems in the settings:\n  - ")
    for words in ("kl_coeff", "learning_rate", "temperature", "do_sample", "num_mini_batches", "subtracts"):
        assert words in message


def test_rules_are_asked_beside_a_wrong_type_but_not_about_it():
    # batch_size is broken, so what it would do to num_mini_batches is not known; the penalties clash all the same.
    with pytest.raises(ConfigError) as refusal:
        PPOConfig(batch_size="4", num_mini_batches=8, missing_eos_penalty=1, non_eos_penalty=True)
    message = str(refusal.value)
    assert message.startswith("2 problems")
    assert "batch_size = '4'" in message
    assert "subtracts" in message


def test_a_rule_about_a_broken_setting_is_not_reported():
    # By its default stop_token would be "eos" and the penalty right; by "none" it would clash. Neither is known.
    with pytest.raises(ConfigError, match=r"^1 problem in the settings:\n  - stop_token_id = 'x'"):
        PPOConfig(stop_token=None, stop_token_id="x", non_eos_penalty=True)

"""The runs: what is done to each, and the verdict that is right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.health import illness
from nearstep import PPOTrainer

Nothing: Mapping[str, object] = {}


@dataclass(frozen=True)
class Case:
    """One run. `causes` are the rules that name what was done, none for a healthy run; `states` are right verdicts."""

    name: str
    what: str
    causes: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    given: Callable[[illness.World], Mapping[str, object]] = lambda world: Nothing  # to PPOTrainer
    spoil: Callable[[PPOTrainer], object] = lambda trainer: None  # once it is made
    states: tuple[str, ...] = ("ill",)


NO_MODEL = {"reward_model_path": None}
ANY_LENGTH = {**NO_MODEL, "missing_eos_penalty": None}
GROUPS = {"advantage": "group_normalized", "num_generations": 4, "kl_coef": 0.0}

HEALTHY = (
    Case("demo", "the demo's settings"),
    Case("short", "10 updates", settings={"updates": 10}),
    Case("decoupled", "--recipe decoupled", settings={"critic": "decoupled", "vf_learning_rate": 1e-3}),
    Case("divergence", "--recipe divergence", settings={"trust_region": "binary_tv", "kl_coef": 0.0}),
    Case(
        "dapo",
        "--recipe dapo, 4 samples",
        settings={**GROUPS, "cliprange_high": 0.28, "mask_truncated_completions": True},
    ),
    Case(
        "gspo",
        "--recipe gspo, 4 samples",
        settings={
            **GROUPS,
            "ratio_level": "row",
            "cliprange": 3e-4,
            "cliprange_high": 4e-4,
            "loss_aggregation": "sequence_mean",
        },
    ),
    Case(
        "vapo",
        "--recipe vapo, 4 updates of warm-up",
        settings={
            "lam_critic": 1.0,
            "lam_length_alpha": 0.05,
            "vf_warmup_updates": 4,
            "cliprange_high": 0.28,
            "kl_coef": 0.0,
            "vf_learning_rate": 1e-3,
        },
    ),
    Case("trl_parity", "--recipe trl_parity", settings={"score_position": "after_eos", "max_grad_norm": None}),
    Case("shared trunk", "critic_trunk = shared", settings={"critic_trunk": "shared"}),
    Case("LoRA", "adapters of rank 16", settings={"use_peft": True, "learning_rate": 2e-3}),
    Case("no critic", "advantage = leave_one_out", settings={"advantage": "leave_one_out", "num_generations": 4}),
    Case("bfloat16", "weights in bfloat16", settings={"dtype": "bfloat16"}),
    Case("autocast", "bf16", settings={"bf16": True}),
    Case("cold", "temperature 0.7, top_p 0.9", settings={"temperature": 0.7, "top_p": 0.9}),
    Case(
        "small batches", "8 episodes an update, 40 updates", settings={"batch": 8, "updates": 40, "learning_rate": 1e-4}
    ),
    Case("slow", "a learning rate of 2e-5", settings={"learning_rate": 2e-5}),
    Case("facts", "the reward is facts of the post, less invented ones", (), ANY_LENGTH,
         lambda world: {"reward_funcs": illness.facts}),
    Case("small bonus", "entropy_coef 0.01", settings={"entropy_coef": 0.01}),
)  # fmt: skip

ILL = (
    Case("rate × 1000", "learning_rate 0.5", ("steps_too_large",), {"learning_rate": 0.5}),
    Case("rate × 1000, one step", "the same, one optimizer step in an update, no reference", ("steps_too_large",),
         {"learning_rate": 0.5, "num_ppo_epochs": 1, "num_mini_batches": 1, "kl_coef": 0.0}),
    Case("rate × 1000, bonus", "the same, and an entropy_coef of 0.01", ("steps_too_large",),
         {"learning_rate": 0.5, "entropy_coef": 0.01}),
    Case("rate × 30", "learning_rate 0.015", ("steps_too_large",), {"learning_rate": 0.015}),
    Case("sign of the weight", "reward_weights = −1", ("negative_weight",), {"reward_weights": (-1.0,)}),
    Case("sign of the model", "a reward model whose head is negated", ("inverted",), NO_MODEL,
         lambda world: {"reward_model": world.reward(sign=-1)}),
    Case("sign of the function", "a function that gives minus the reward model's score", ("inverted", "reward_hacked"),
         NO_MODEL, lambda world: {"reward_funcs": world.scored_by_model(sign=-1)}),
    Case("sign of facts", "minus the facts of the post, 4 samples", ("inverted", "reward_hacked"),
         {**ANY_LENGTH, "advantage": "group_normalized", "num_generations": 4},
         lambda world: {"reward_funcs": illness.no_facts}),
    Case("sign of the advantage", "an advantage of one's own with the sign turned", ("against_the_reward",), {},
         lambda world: {"advantage": illness.Turned()}),
    Case("random reference", "ref_model with random weights", ("wrong_reference",), {},
         lambda world: {"ref_model": world.random_policy()}),
    Case("other reference", "ref_model with noise of a fifth in its weights", ("wrong_reference",), {},
         lambda world: {"ref_model": world.noisy_policy(0.2)}),
    Case("dropout", "F.dropout of 0.1 after every layer", ("random_forward",), spoil=illness.drop_out),
    Case("other stop token", "stop_token_id of a token that is never said", ("never_ends",),
         {"stop_token": None, "stop_token_id": (5,)}),
    Case("no EOS", "a policy that gives EOS no probability", ("never_ends",), {},
         lambda world: {"model": world.endless_policy()}),
    Case("length", "the reward is the number of words", ("reward_hacked",), ANY_LENGTH,
         lambda world: {"reward_funcs": illness.words}),
    Case("one word", "the reward is how often 'my' is said", ("reward_hacked",), ANY_LENGTH,
         lambda world: {"reward_funcs": illness.mine}),
    # In 14 updates the policy hardly finds it: there is nothing to hack yet, and little to learn from.
    Case("one rare word", "the reward is how often 'angry' is said", ("reward_hacked", "no_spread"), ANY_LENGTH,
         lambda world: {"reward_funcs": illness.anger}, states=("ill", "watch")),
    Case("engine too hot", "the engine samples at temperature 1.5", ("sampled_otherwise", "mismatch"), {},
         lambda world: {"engine": illness.HotEngine}),
    Case("engine too hot, silent", "the same, and it records log-probs at temperature 1", ("sampled_otherwise",), {},
         lambda world: {"engine": illness.SilentHotEngine}),
    Case("stale engine", "the engine keeps the weights of the start", ("sampled_otherwise", "mismatch"), {},
         lambda world: {"engine": illness.StaleEngine}),
    Case("critic at rest", "vf_learning_rate 0", ("critic_frozen",), {"critic": "decoupled", "vf_learning_rate": 0.0}),
    Case("constant reward", "1 for every response", ("no_spread",), ANY_LENGTH,
         lambda world: {"reward_funcs": illness.one}),
    Case("kl_coef × 1000", "kl_coef 50", ("penalty_decides",), {"kl_coef": 50.0}),
    Case("entropy bonus", "entropy_coef 5", ("entropy_bonus",), {"entropy_coef": 5.0}),
    Case("too short", "response_length 6", ("never_ends", "cut_off"), {"response_length": 6}),
    # A remark alone: a policy that rambled and has learned to end gives the same curves.
    Case("too short for most", "response_length 11", ("cut_off",), {"response_length": 11}),
)  # fmt: skip

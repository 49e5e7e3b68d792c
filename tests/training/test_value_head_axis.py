"""The critic's head as an axis: settings that clash, objects that do not fit, broken laws, and runs that go on."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from nearstep import CheckpointError, ConfigError, PPOConfig
from nearstep.algorithm.kl_controllers import FixedKL
from nearstep.algorithm.several_outputs import QuantileHead
from nearstep.algorithm.value_heads import BCEHead, BoundedHead, LinearHead, outside
from nearstep.cli.main import main
from nearstep.common.errors import ConformanceError
from nearstep.testing.kinds import kind_of
from nearstep.testing.value_heads import check_value_head
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.checkpoint.saved_runs import assert_same_bits, everything, records, trainer_of
from tests.training.runs import play, small_recipe

BOUNDED = {"value_head": "bounded", "value_min": 0.0, "value_max": 1.0, "kl_coef": 0.0}
FILE = """
from dataclasses import dataclass
from typing import ClassVar
from nearstep.algorithm.value_heads import LinearHead, ValueTargets

@dataclass(frozen=True)
class Absolute:
    outputs: ClassVar[int] = 1
    starts_at_zero: ClassVar[bool] = False
    value_range: ClassVar[tuple | None] = None

    def values(self, outputs):
        return outputs.float().squeeze(-1)

    def loss(self, outputs, learned):
        return (self.values(outputs) - learned.targets).abs()

class Ranged(Absolute):
    value_range = (0.0, 1.0)
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"value_head": "bound"}, "value_head = 'bound' is unknown; did you mean bounded?"),
        ({"value_head": "bce", "kl_coef": 0.0}, "value_head = bce needs value_min and value_max"),
        (BOUNDED | {"value_min": 1.0}, "value_min = 1 must be below value_max = 1"),
        (BOUNDED | {"kl_coef": 0.05}, "kl_in = reward (kl_coef = 0.05) subtracts a KL penalty without a limit at every "
         "token: use kl_in = loss (with kl_estimator = k2 or k3), or kl_coef = 0"),
        (BOUNDED | {"kl_coef_final": 0.1}, "subtracts a KL penalty"),
        (BOUNDED | {"kl_controller": "mine.py:Own"}, "subtracts a KL penalty"),
        (BOUNDED | {"whiten_rewards": True}, "whiten_rewards divides rewards by another number in every update"),
        (BOUNDED | {"normalize_scores": "scale"}, "normalize_scores = scale gives scores none: set reward_clip"),
        (BOUNDED | {"non_eos_penalty": True}, "penalty_reward_value = -1 lies outside value_min = 0 and value_max = 1"),
        (BOUNDED | {"missing_eos_penalty": 1.0}, "missing_eos_penalty = 1 takes all that lies between"),
        (BOUNDED | {"overlong_buffer": 4, "overlong_penalty": 2.0}, "overlong_penalty = 2 takes all that lies"),
        ({"value_head": "ensemble"}, "num_generations must be at least 2"),
        ({"value_head": "ensemble", "num_generations": 3, "value_members": 4}, "num_generations must be at least 4"),
        ({"vf_frozen": ["*attn*"], "critic_trunk": "shared"}, "all but the critic's head are the policy's weights"),
        ({"value_bins": 1}, "value_bins = 1 must be at least 2"),
    ],
)  # fmt: skip
def test_what_clashes_is_refused(given, said):
    with pytest.raises(ConfigError) as refused:
        PPOConfig(**given)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        BOUNDED | {"kl_coef": 0.05, "kl_in": "loss", "kl_estimator": "k3"},
        BOUNDED | {"normalize_scores": "scale", "reward_clip": 1.0},
        BOUNDED | {"value_min": -1.0, "non_eos_penalty": True},
        {"value_head": "quantile"},
        {"value_head": "ensemble", "num_generations": 2},
    ],
)
def test_the_ways_out_are_open(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "without a stop token")
        PPOConfig(**given)


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        ({"value_min": 0.0, "value_max": 1.0}, ["value_min", "value_max"]),
        (BOUNDED | {"cliprange_value": 0.5, "value_bins": 9}, ["value_bins", "cliprange_value"]),
        ({"value_quantiles": 9, "value_huber": 1.0, "value_members": 3, "value_sigma": 1.0}, [
            "value_sigma", "value_quantiles", "value_huber", "value_members",
        ]),
        (BOUNDED | {"advantage": "group_mean", "num_generations": 2, "vf_frozen": ["*"]}, [
            "value_head", "value_min", "value_max", "vf_frozen",
        ]),
    ],
)  # fmt: skip
def test_settings_without_effect_are_told(given, idle):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        PPOConfig(**given)
    assert [str(each.message).split()[0] for each in told if "has no effect" in str(each.message)] == idle


def test_an_object_a_class_and_a_file_are_heads(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    by_name = small_recipe(tmp_path / "a", value_head="mine.py:Absolute")
    assert type(by_name.models.critic.value_head).__name__ == "Absolute"
    given = small_recipe(tmp_path / "b", kl_coef=0.0, parts={"value_head": BCEHead(0.0, 1.0)})
    assert given.models.critic.value_head == BCEHead(0.0, 1.0)
    assert "value_head is an object of your own: BCEHead." in given.introduction
    made = small_recipe(tmp_path / "c", parts={"value_head": QuantileHead})
    assert made.models.critic.head.out_features == 32
    with pytest.raises(ConfigError, match=r"value head 'mine.py:Ranged' holds values in a range, and kl_in = reward"):
        small_recipe(tmp_path / "d", value_head="mine.py:Ranged")
    with pytest.raises(ConfigError, match="BCEHead holds values in a range, and kl_in = reward"):
        small_recipe(
            tmp_path / "e", kl_coef=0.0, parts={"value_head": BCEHead(0.0, 1.0), "kl_controller": FixedKL(0.1)}
        )
    with pytest.raises(ConfigError, match="an object was passed, and the settings say value_head = quantile"):
        small_recipe(tmp_path / "f", value_head="quantile", parts={"value_head": LinearHead()})
    with pytest.raises(ConfigError, match="advantage leave_one_out has no critic; leave it out"):
        small_recipe(tmp_path / "g", advantage="leave_one_out", num_generations=4, parts={"value_head": LinearHead()})
    assert main(["check", "mine.py:Absolute", "--skip", "mean", "learns"]) == 0


@dataclass(frozen=True)
class Sound:
    """Two outputs, the value their sum."""

    outputs: ClassVar[int] = 2
    starts_at_zero: ClassVar[bool] = False
    value_range: ClassVar[tuple[float, float] | None] = None

    def values(self, outputs):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32)).sum(-1)

    def loss(self, outputs, learned):
        return (self.values(outputs) - learned.targets).square() / 2


class NoCount(Sound):
    outputs = 0


class Lies(Sound):
    value_range = (0.0, 1.0)


class Narrow(Sound):
    def values(self, outputs):
        return outputs.sum(-1)


class Summed(Sound):
    def loss(self, outputs, learned):
        return super().loss(outputs, learned).sum()


class Centred(Sound):
    def loss(self, outputs, learned):
        return super().loss(outputs, replace(learned, targets=learned.targets - learned.targets.mean()))


class Away(Sound):
    def loss(self, outputs, learned):
        return -super().loss(outputs, learned)


class Stuck(Sound):
    def loss(self, outputs, learned):
        return super().loss(outputs.detach(), learned) + 0 * outputs.sum(-1)


class InPlace(Sound):
    def loss(self, outputs, learned):
        learned.targets.mul_(2)
        return super().loss(outputs, learned)


class Biased(Sound):
    def values(self, outputs):
        return super().values(outputs) + 0.2

    def loss(self, outputs, learned):
        return (super().values(outputs) - learned.targets).square()


class Median(Sound):
    def loss(self, outputs, learned):
        return (self.values(outputs) - learned.targets).abs()


class Pulled(Sound):
    def loss(self, outputs, learned):
        return super().loss(outputs, learned) + (self.values(outputs) - learned.old_values).square() / 4


class Measured(Sound):
    def measures(self, outputs, learned):
        return {"mean_of_all": outputs.mean()}


@pytest.mark.parametrize(
    ("head", "law", "said"),
    [
        (NoCount(), "protocol", "outputs is 0"),
        (Lies(), "in_range", r"outside \[0, 1\]"),
        (Narrow(), "every_type", "value of torch.bfloat16 outputs"),
        (Summed(), "one_number_each", r"loss has shape \[\] for 96 states"),
        (Measured(), "one_number_each", r"measures\(\)\['mean_of_all'\] has shape"),
        (Centred(), "own_state", "loss is another among fewer states"),
        (Away(), "toward", "a step gives"),
        (Stuck(), "gradient", "no output has a gradient"),
        (InPlace(), "inputs_untouched", "changed in place"),
        (Biased(), "learns", "taught a return of 0.6 it says 0.8"),
        (Pulled(), "not_pulled", r"a step moves it to 0\.\d+, and where it said -0\.4\d* at rollout to"),
        (Median(), "mean", "on average, it says -0.59"),
        (QuantileHead(16, 1.0), "mean", "it says -0.2"),  # expectiles of two returns
        (object(), "protocol", "a object without outputs, starts_at_zero, value_range, values, loss"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Sound) else None,
)
def test_broken_heads_are_caught(head, law, said):
    with pytest.raises(ConformanceError, match=said) as broken:
        check_value_head(head)
    assert f"breaks the law '{law}'" in str(broken.value)


def test_a_sound_head_keeps_the_laws_and_is_known():
    assert kind_of(Sound()) == "value_head"
    assert check_value_head(Sound()).not_offered == ("in_range",)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (Summed(), r"value head Summed: loss has shape \[\] and should have \[6\]"),
        (NoCount(), "outputs is 0; it is a whole number from 1 on"),
        (Sound, None),
        (7, "has no `outputs` and no"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(head, said, tmp_path):
    if said is None:
        assert small_recipe(tmp_path, parts={"value_head": head}).models.critic.head.out_features == 2
        return
    with pytest.raises(ConfigError, match=said):
        small_recipe(tmp_path, parts={"value_head": head})


def test_scores_outside_the_range_are_counted_where_the_critic_learns(tmp_path):
    recipe = small_recipe(tmp_path, **BOUNDED | {"value_max": 0.4}, total_episodes=8)
    _, _, scores = play(recipe)
    with recipe.report.reporter as reporter:
        train(recipe, State())
        logged = reporter.history[-1]["val/target_out_of_range"]
    assert bool((outside(scores.total, 0.0, 0.4) > 0).any())
    assert 0 < logged < 1


HL_GAUSS = {"value_head": "hl_gauss", "value_min": -1.0, "value_max": 2.0, "kl_coef": 0.0}


@pytest.mark.slow
def test_a_run_with_a_head_goes_on_with_the_same_bits(tmp_path):
    changed = HL_GAUSS | {"vf_frozen": ("*embed_tokens*",), "total_episodes": 24}
    unbroken = trainer_of(tmp_path, **changed)
    unbroken.train()
    expected, written = everything(unbroken), records(tmp_path)
    resumed = trainer_of(tmp_path, **changed)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert_same_bits(everything(resumed), expected)
    assert records(tmp_path) == written


@pytest.mark.slow
def test_a_checkpoint_of_another_head_is_refused_also_in_a_fork(tmp_path):
    trainer_of(tmp_path / "a", total_episodes=8, kl_coef=0.0, given={"value_head": BoundedHead(0.0, 1.0)}).train()
    other = trainer_of(tmp_path / "a", total_episodes=8, kl_coef=0.0, given={"value_head": BoundedHead(0.0, 2.0)})
    with pytest.raises(CheckpointError, match=r"trained with BoundedHead\(high=1.0, low=0.0\), and this run reads it"):
        other.train(resume_from_checkpoint=True)
    fork = trainer_of(tmp_path / "b", total_episodes=16, kl_coef=0.0, fork_from=str(tmp_path / "a" / "checkpoint-1"))
    with pytest.raises(CheckpointError, match=r"and this run reads it with a linear head. Keep value_head"):
        fork.train()
    without = trainer_of(
        tmp_path / "c", total_episodes=16, kl_coef=0.0, advantage="batch_normalized",
        fork_from=str(tmp_path / "a" / "checkpoint-1"),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="this run trains policy: keep the settings that say whether there is a"):
        without.train()

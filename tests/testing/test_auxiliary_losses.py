"""The laws of auxiliary losses: ours keep them, broken ones are caught, and misfits are refused before a run."""

from dataclasses import dataclass

import pytest
import torch

from nearstep import ConfigError
from nearstep.common.errors import ConformanceError
from nearstep.metrics import Metrics
from nearstep.testing.auxiliary_losses import LAWS, check_auxiliary_loss
from nearstep.testing.kinds import kind_of
from nearstep.training.auxiliary import GoodRowsNLL, TeacherKL, ZLoss
from tests.tiny import tiny_causal_lm
from tests.training.runs import small_recipe


@pytest.mark.parametrize("ours", [GoodRowsNLL(0.1), ZLoss(1e-4), TeacherKL(1.0)], ids=lambda loss: loss.name)
def test_ours_keep_the_laws(ours):
    assert kind_of(ours) == "auxiliary_loss"
    assert [law for law, _ in check_auxiliary_loss(ours).held] == [law.name for law in LAWS]


@dataclass(frozen=True)
class Fine:
    """The plain mean of −log π."""

    coef: float = 1.0
    name: str = "mine"
    needs_log_normalizers: bool = False

    def count(self, rows):
        return torch.tensor(len(rows.old_logprobs))

    def loss(self, micro, now):
        return -now.sampled.sum(), Metrics()


class CountsInPython(Fine):
    def count(self, rows):
        return len(rows.old_logprobs)


class NoCount:
    coef, name, needs_log_normalizers = 1.0, "mine", False

    def loss(self, micro, now):
        return -now.sampled.sum(), Metrics()


class AMean(Fine):
    def loss(self, micro, now):
        return -now.sampled.mean(), Metrics()


class CountsBatches(Fine):
    def count(self, rows):
        return torch.tensor(1)


class NoPair(Fine):
    def loss(self, micro, now):
        return -now.sampled.sum()


class NotANumber(Fine):
    def loss(self, micro, now):
        return now.sampled.sum() * torch.nan, Metrics()


class OneForEach(Fine):
    def loss(self, micro, now):
        return -now.sampled, Metrics()


class Overflows(Fine):
    def loss(self, micro, now):
        return -(1 - now.sampled.exp()).log().sum(), Metrics()


class NoGradient(Fine):
    def loss(self, micro, now):
        return -now.sampled.detach().sum(), Metrics()


class Random(Fine):
    def loss(self, micro, now):
        return -(now.sampled * torch.rand(1)).sum(), Metrics()


class Writes(Fine):
    def loss(self, micro, now):
        micro.advantages.add_(1)
        return -now.sampled.sum(), Metrics()


BROKEN = {
    "protocol": [NoCount()], "one_sum": [NoPair(), OneForEach(), NotANumber()],
    "adds_up": [AMean(), CountsBatches(), Random()],
    "finite": [Overflows()], "through_now": [NoGradient()], "inputs_untouched": [Writes()],
}  # fmt: skip


@pytest.mark.parametrize(("law", "loss"), [(law, loss) for law, losses in BROKEN.items() for loss in losses])
def test_a_broken_loss_is_caught(law, loss):
    assert kind_of(loss) == "auxiliary_loss"
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        check_auxiliary_loss(loss)
    assert check_auxiliary_loss(Fine())
    assert check_auxiliary_loss(CountsInPython())


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory):
    """The folder of a model that cannot be loaded."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_causal_lm().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.mark.parametrize(("given", "said"), [
    (NoCount(), "auxiliary loss NoCount has no count: it needs name, coef"),
    (Fine(coef=0.0), "coef is 0.0; it is a finite number other than 0"),
    (Fine(name="a/b"), "name is 'a/b'; it is a word without a /"),
    (NoPair(), "on three made-up rows: loss returned 'Tensor'; return the sum and Metrics"),
    (OneForEach(), r"the sum has shape \[6\]; return one float"),
    ([Fine(), Fine(coef=2.0)], "two are called 'mine'"),
    (Fine(name="ptx"), "two are called 'ptx'"),
    ("my_loss", "'my_loss' is no loss; give an object, or file.py:Name"),
])  # fmt: skip
def test_misfits_are_refused_before_a_model_is_loaded(given, said, tmp_path, without_weights):
    with pytest.raises(ConfigError, match=said):
        small_recipe(tmp_path, parts={"auxiliary_losses": given, "model": None}, model_name_or_path=without_weights)


def test_a_name_that_is_no_place_in_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"auxiliary_losses = 'z_loss': write a loss of your own as file\.py:Name"):
        small_recipe(tmp_path, auxiliary_losses=["z_loss"])


def test_nll_reward_names_a_part(tmp_path):
    with pytest.raises(ConfigError, match="nll_reward = right: the parts of the reward are low_ids"):
        small_recipe(tmp_path, nll_coef=0.1, nll_reward="right")

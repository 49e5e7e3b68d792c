"""Auxiliary losses: values and gradients by hand, divisors of their own, nothing where they are off."""

import dataclasses
import math
import warnings

import pytest
import torch

from nearstep.common.errors import TrainingError
from nearstep.metrics import Mean, Metrics
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.layout import PaddedRows
from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.auxiliary import (
    Auxiliary,
    GoodRowsNLL,
    TeacherKL,
    ZLoss,
    auxiliary_divisors,
    auxiliary_terms,
)
from nearstep.training.auxiliary_inputs import good_rows
from nearstep.training.experience import describe, make_experience
from nearstep.training.objectives import losses
from nearstep.training.schedules import Phase
from nearstep.training.update import divisors_of, improve
from nearstep.types import Scores
from tests.lanes import slow
from tests.tiny import tiny_causal_lm
from tests.training.runs import play, settings, small_recipe
from tests.training.test_objective_metrics import experience, floats

CPU = torch.device("cpu")
POLICY = Phase(1, 1, policy=True, critic=False)
BOTH = Phase(1, 1, policy=True, critic=True)


@dataclasses.dataclass(frozen=True)
class AlikeProcesses(TorchBackend):
    """So many processes with the same rows; remembers what was added up."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    asked: list = dataclasses.field(default_factory=list)

    def add_up(self, values):
        self.asked.append(values.clone())
        return values * self.world_size


def by_hand(loss, rows, now, *, processes=1):
    divisors = auxiliary_divisors(rows, (loss,), AlikeProcesses(world_size=processes))
    (term,), metrics = auxiliary_terms(rows, now, (loss,), divisors)
    return term, metrics.numbers()


def test_good_rows_by_hand():
    """Two rows of two tokens: the second is good, so two tokens are counted."""
    now = floats(0.9, 0.8, 0.5, 0.25).log().requires_grad_()
    rows = experience(good=torch.tensor([False, True]))
    term, shown = by_hand(GoodRowsNLL(0.1), rows, ActionLogprobs(now, floats(0, 0, 0, 0)))
    assert term.item() == pytest.approx(0.1 * (math.log(2) + math.log(4)) / 2)
    assert shown == pytest.approx({"auxiliary/nll": 1.5 * math.log(2)})
    (gradient,) = torch.autograd.grad(term, now)
    assert gradient.tolist() == pytest.approx([0, 0, -0.05, -0.05])
    halved, _ = by_hand(GoodRowsNLL(0.1), rows, ActionLogprobs(now, floats(0, 0, 0, 0)), processes=2)
    assert halved.item() == pytest.approx(term.item() / 2)  # as much again is counted elsewhere


def test_without_a_good_row_anywhere_nothing_is_added_and_nothing_is_logged():
    now = floats(0.9, 0.8, 0.5, 0.25).log().requires_grad_()
    rows = experience(good=torch.tensor([False, False]))
    term, shown = by_hand(GoodRowsNLL(0.1), rows, ActionLogprobs(now, floats(0, 0, 0, 0)))
    assert (term.item(), shown) == (0, {})
    assert torch.autograd.grad(term, now)[0].tolist() == [0, 0, 0, 0]


def test_z_loss_by_hand():
    normalizers = floats(1, -2, 0.5, 3).requires_grad_()
    now = ActionLogprobs(floats(-1, -1, -1, -1), floats(0, 0, 0, 0), log_normalizers=normalizers)
    term, shown = by_hand(ZLoss(0.01), experience(), now)
    assert term.item() == pytest.approx(0.01 * (1 + 4 + 0.25 + 9) / 4)
    assert shown == pytest.approx({"auxiliary/z_loss": 14.25 / 4})
    assert torch.autograd.grad(term, normalizers)[0].tolist() == pytest.approx([0.005, -0.01, 0.0025, 0.015])


def test_teacher_as_a_loss_by_hand():
    """½ (log π − log π_teacher)², whose gradient is the gap itself: toward the teacher from both sides."""
    now = floats(-1, -2, -3, -0.5).requires_grad_()
    rows = experience(teacher_logprobs=floats(-2, -2, -1, -0.5))
    term, shown = by_hand(TeacherKL(2.0), rows, ActionLogprobs(now, floats(0, 0, 0, 0)))
    assert term.item() == pytest.approx(2 * (0.5 + 0 + 2 + 0) / 4)
    assert shown == pytest.approx({"auxiliary/teacher_k2": 2.5 / 4})
    assert torch.autograd.grad(term, now)[0].tolist() == pytest.approx([0.5, 0, -1, 0])


def test_a_row_is_good_by_its_raw_score_or_by_a_part_of_it(tmp_path):
    parts = {"right": torch.tensor([0.0, 1.0, torch.nan, 1.0])}
    scores = Scores(torch.tensor([0.9, 1.0, 3.0, torch.nan]), parts)
    assert good_rows(scores, settings(tmp_path, nll_coef=0.1)).tolist() == [False, True, True, False]
    assert good_rows(scores, settings(tmp_path, nll_coef=0.1, nll_min_score=2.0)).tolist() == [
        False,
        False,
        True,
        False,
    ]
    by_part = settings(tmp_path, nll_coef=0.1, nll_reward="right")
    assert good_rows(scores, by_part).tolist() == [False, True, False, False]  # a row that is not scored is left out


def recipe_of(folder, *, kind="gpt2", parts=None, **changes):
    """One step of size 0 in float64, so that gradients can be looked at afterwards."""
    model = tiny_causal_lm(kind, dtype=torch.float64, layers=1)
    given = {
        "learning_rate": 0.0,
        "max_grad_norm": None,
        **({"nll_min_score": 0.4} if "nll_coef" in changes else {}),
        **changes,
    }
    return small_recipe(folder, dtype=torch.float64, parts={"model": model, **(parts or {})}, **given)


def gradients(recipe, rows, phase=POLICY, texts=None):
    improve(rows, phase, recipe, first=True, texts=texts)
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in weights_of(recipe)]


def weights_of(recipe):
    return list(recipe.models.policy.model.parameters())


def added(recipe, rows, phase=POLICY, texts=None):
    """What auxiliary losses add to the gradient."""
    without = dataclasses.replace(recipe, auxiliary=Auxiliary())
    return [one - other for one, other in zip(gradients(recipe, rows, phase, texts), gradients(without, rows, phase),
                                              strict=True)]  # fmt: skip


def plain_actions(model, rollout):
    """For each row the logits before its actions, and the actions, by the model's own forward pass."""
    lengths = rollout.row_lengths.tolist()
    for tokens, flags in zip(rollout.tokens.split(lengths), rollout.is_action.split(lengths), strict=True):
        places = flags.nonzero().squeeze(-1)
        yield model(tokens[None]).logits[0, places - 1], tokens[places]


PLAIN = {
    "nll": lambda logits, actions, good, teacher: (
        -(logits / 0.7).log_softmax(-1).gather(1, actions[:, None]).sum() * good, len(actions) * good
    ),
    "z_loss": lambda logits, actions, good, teacher: (logits.logsumexp(-1).square().sum(), len(actions)),
    "teacher": lambda logits, actions, good, teacher: (
        ((logits / 0.7).log_softmax(-1).gather(1, actions[:, None])[:, 0] - teacher).square().sum() / 2, len(actions)
    ),
}  # fmt: skip
SETTINGS = {
    "nll": {"nll_coef": 0.3},
    "z_loss": {"z_loss_coef": 0.3},
    "teacher": {"teacher_in": "loss", "teacher_coef": 0.3},
}


def given_for(name):
    return {"teacher_model": tiny_causal_lm("gpt2", dtype=torch.float64, layers=1, seed=3)} if name == "teacher" else {}


@pytest.mark.parametrize(
    "changes",
    [slow({}), {"critic_trunk": "shared"}, slow({"loss_aggregation": "sequence_mean"})],
    ids=["separate", "one trunk", "sequence mean"],
)
@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_those_of_the_models_own_forward_pass(tmp_path, name, changes):
    """At temperature 0.7, whatever the aggregation and the pass that the policy shares."""
    stops = list(range(0, 258, 5))  # rows of several lengths
    recipe = recipe_of(
        tmp_path, parts=given_for(name), temperature=0.7, stop_token_id=stops, **SETTINGS[name], **changes
    )
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    assert name != "nll" or 0 < int(rows.good.sum()) < 8
    teacher = (
        [None] * 8 if rows.teacher_logprobs is None else rows.teacher_logprobs.split(rollout.action_counts.tolist())
    )
    found = added(recipe, rows, BOTH if "critic_trunk" in changes else POLICY)
    total = count = 0
    good = [True] * 8 if rows.good is None else rows.good.tolist()
    for number, (logits, actions) in enumerate(plain_actions(recipe.models.policy.model, rollout)):
        part, counted = PLAIN[name](logits, actions, good[number], teacher[number])
        total, count = total + part, count + counted
    expected = torch.autograd.grad(0.3 * total / count, weights_of(recipe), allow_unused=True)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_padded_rows_give_the_same_gradients(tmp_path):
    """As a model that cannot be packed computes them."""
    recipe = recipe_of(tmp_path, parts=given_for("teacher"), stop_token_id=list(range(0, 258, 5)), **ALL)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    padded = dataclasses.replace(recipe.models.policy, layout=PaddedRows("it is a test"))
    beside = dataclasses.replace(recipe, models=dataclasses.replace(recipe.models, policy=padded))
    for one, other in zip(gradients(beside, rows), gradients(recipe, rows), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


ALL = {"nll_coef": 0.3, "z_loss_coef": 0.1, "teacher_in": "loss", "teacher_coef": 0.2}


@pytest.mark.parametrize("kind", ["gpt2", slow("llama")])
def test_no_split_changes_a_gradient(tmp_path, kind):
    found = []
    for name, limits in (
        ("whole", {}),
        ("rows", {"per_device_train_batch_size": 1}),
        ("tokens", {"max_tokens_per_microbatch": 17}),
    ):
        recipe = recipe_of(tmp_path / name, kind=kind, parts=given_for("teacher"), batch_size=8, **ALL, **limits)
        _, rollout, scores = play(recipe)
        found.append(gradients(recipe, make_experience(rollout, scores, recipe)))
    for split in found[1:]:
        for one, other in zip(split, found[0], strict=True):
            torch.testing.assert_close(one, other, atol=2e-7 if kind == "llama" else 1e-11, rtol=1e-6)


def test_the_teacher_is_an_addend_of_advantages_after_whitening(tmp_path):
    recipe = recipe_of(tmp_path, parts=given_for("teacher"), teacher_coef=0.3)
    without = recipe_of(tmp_path / "without")
    _, rollout, scores = play(recipe)
    rows, plain = make_experience(rollout, scores, recipe), make_experience(rollout, scores, without)
    gaps = []
    for logits, actions in plain_actions(recipe.models.teacher.policy.model, rollout):
        gaps.append(-logits.log_softmax(-1).gather(1, actions[:, None])[:, 0])
    gap = rollout.logprobs + torch.cat(gaps)
    assert gap.abs().max() > 0.1
    torch.testing.assert_close(rows.advantages, plain.advantages - 0.3 * gap)
    for name in ("raw_advantages", "returns", "rewards"):
        assert torch.equal(getattr(rows, name), getattr(plain, name))
    shown = describe(rows, scores, recipe).numbers()
    assert shown["auxiliary/teacher_kl"] == pytest.approx(float(gap.mean()))
    assert not rows.teacher_logprobs.requires_grad


def test_before_the_first_step_both_forms_of_the_teacher_have_one_gradient(tmp_path):
    """−A·ρ·∇log π with A = −λ·gap, and λ·gap·∇log π of k2: scores that are all alike add nothing."""
    parts = given_for("teacher") | {"reward_funcs": lambda completion_ids, **rest: [0.0] * len(completion_ids)}
    found = []
    for form in ("advantage", "loss"):
        recipe = recipe_of(
            tmp_path / form, parts=parts, advantage="batch_normalized", kl_coef=0.0, teacher_coef=0.3, teacher_in=form
        )
        _, rollout, scores = play(recipe)
        found.append(gradients(recipe, make_experience(rollout, scores, recipe)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 1e-3


@dataclasses.dataclass(frozen=True)
class Own:
    """Entropy above nothing: Σ of the log-probs, or NaN."""

    value: float = 1.0
    counted: float = 1.0
    name: str = "own"
    coef: float = 1.0
    needs_log_normalizers: bool = False

    def count(self, rows):
        return torch.tensor(self.counted * len(rows))

    def loss(self, micro, now):
        return self.value * now.sampled.sum(), Metrics({"own/seen": Mean.of(now.sampled)})


def test_a_broken_loss_is_named_and_its_step_left_out(tmp_path):
    recipe = recipe_of(tmp_path, parts={"auxiliary_losses": [Own(math.nan)]}, learning_rate=1e-2)
    _, rollout, scores = play(recipe)
    before = [weight.clone() for weight in weights_of(recipe)]
    with pytest.warns(UserWarning, match="left out.*Not finite here: auxiliary/own"):
        metrics, taken = improve(make_experience(rollout, scores, recipe), POLICY, recipe, first=True)
    assert (taken, metrics.numbers()) == (False, {})
    assert all(map(torch.equal, before, weights_of(recipe)))


@pytest.mark.parametrize("counted", [-1.0, math.nan])
def test_a_count_that_is_none_ends_the_run(tmp_path, counted):
    recipe = dataclasses.replace(recipe_of(tmp_path), auxiliary=Auxiliary((Own(counted=counted),)))
    _, rollout, scores = play(recipe)
    with pytest.raises(TrainingError, match=r"auxiliary loss own \(Own\) on a minibatch of this run: count is"):
        improve(make_experience(rollout, scores, recipe), POLICY, recipe, first=True)


def test_only_steps_of_the_policy_ask(tmp_path):
    recipe = recipe_of(tmp_path, parts={"auxiliary_losses": Own()})
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    metrics, _ = improve(rows, Phase(1, 1, policy=False, critic=True), recipe, first=True)
    assert "own/seen" not in metrics.by_name
    metrics, _ = improve(rows, BOTH, recipe, first=True)
    assert {"own/seen", "auxiliary/own"} <= metrics.by_name.keys()


def test_nothing_is_asked_of_anybody_where_all_are_off(tmp_path):
    """No sum over processes, no normalisers, no other divisor."""
    recipe = recipe_of(tmp_path)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    backend = AlikeProcesses()
    assert (rows.good, rows.teacher_logprobs) == (None, None)
    divisors = divisors_of(rows, recipe.loss_aggregation, backend, recipe.auxiliary.losses)
    assert (len(backend.asked), divisors.auxiliary) == (1, ())
    (loss, metrics), *_ = losses(rows, POLICY, divisors, recipe, first=True)
    assert not [name for name in metrics.by_name if name.startswith("auxiliary")]
    assert loss.requires_grad


def test_bfloat16_with_adapters(tmp_path):
    """Every loss at once on a bfloat16 policy with LoRA: finite, and the frozen weights stay."""
    teacher = {"teacher_model": tiny_causal_lm(seed=3, dtype=torch.bfloat16)}
    texts = {"ptx_dataset": [{"text": "some words " * 3}]}
    recipe = small_recipe(
        tmp_path, dtype=torch.bfloat16, parts=teacher | texts, use_peft=True, nll_min_score=0.4, ptx_coef=1.0, **ALL
    )  # fmt: skip
    frozen = [weight.clone() for weight in weights_of(recipe) if not weight.requires_grad]
    _, rollout, scores = play(recipe)
    texts = next(recipe.auxiliary.pretraining.batches(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics, taken = improve(make_experience(rollout, scores, recipe), BOTH, recipe, first=True, texts=texts)
    shown = metrics.numbers()
    assert taken
    assert {"auxiliary/nll", "auxiliary/z_loss", "auxiliary/teacher_k2", "auxiliary/ptx"} <= shown.keys()
    assert all(map(math.isfinite, shown.values()))
    assert all(map(torch.equal, frozen, (weight for weight in weights_of(recipe) if not weight.requires_grad)))

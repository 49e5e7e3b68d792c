"""PPO-ptx: which texts a step takes, the gradient of their likelihood, and the same rows after a stop."""

from itertools import chain

import pytest
import torch

from nearstep.common.errors import ConfigError, DataError
from nearstep.data.text_rows import TextRows
from nearstep.models.roles import make_policy
from nearstep.scale.torch_backend import TorchBackend
from nearstep.training import update as update_module
from nearstep.training.batches import BatchSizes
from nearstep.training.experience import make_experience
from nearstep.training.ptx import Pretraining, pretraining_losses, steps_before
from nearstep.training.schedules import Decoupled, Joint, WarmUp
from nearstep.training.update import update
from tests.checkpoint.saved_runs import assert_same_bits, everything, trainer_of
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import play, small_recipe
from tests.training.test_auxiliary import added, recipe_of, weights_of

TEXTS = [{"text": "word " * number} for number in range(1, 8)]
EOS = 256


def ids(text):
    return byte_tokenizer()(text)["input_ids"]


def numbered(rows):
    """Rows of three tokens, the first of which is the row's number."""
    return TextRows.of([([number, 100, 101], 1) for number in range(rows)], longest=8)


def drawn(pretraining, step, steps):
    batches = pretraining.batches(step)
    return [next(batches).tokens.view(-1, 3)[:, 0].tolist() for _ in range(steps)]


def test_a_long_text_is_several_rows_and_every_token_is_predicted_once():
    rows = TextRows.of([(list(range(10, 20)), 1), ([1, 2], 1)], longest=4)
    pieces = [row.tolist() for row in rows.tokens.split(rows.lengths.tolist())]
    assert pieces == [[10, 11, 12, 13], [13, 14, 15, 16], [16, 17, 18, 19], [1, 2]]
    assert (rows.given.tolist(), rows.predicted.tolist()) == ([1, 1, 1, 1], [3, 3, 3, 1])


def test_what_is_given_is_not_predicted_nor_kept_where_nothing_else_is():
    rows = TextRows.of([(list(range(10, 20)), 6), ([7], 1)], longest=4)
    pieces = [row.tolist() for row in rows.tokens.split(rows.lengths.tolist())]
    assert pieces == [[13, 14, 15, 16], [16, 17, 18, 19]]
    assert rows.given.tolist() == [3, 1]
    rollout = rows.as_rollout(torch.device("cpu"))
    assert rollout.actions.tolist() == [16, 17, 18, 19]


def test_every_pass_has_every_row_once_in_an_order_of_its_own():
    pretraining = Pretraining(numbered(7), 1.0, rows=3, seed=0)
    flat = list(chain(*drawn(pretraining, 0, 7)))
    passes = [flat[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(each) == list(range(7)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert drawn(pretraining, 5, 2) == drawn(pretraining, 0, 7)[5:]  # a run that goes on
    assert drawn(Pretraining(numbered(7), 1.0, rows=3, seed=1), 0, 2) != drawn(pretraining, 0, 2)
    more = Pretraining(numbered(2), 1.0, rows=5, seed=0)  # more rows than there are
    assert sorted(chain(*drawn(more, 0, 2))) == [0] * 5 + [1] * 5


def test_steps_are_counted_by_the_schedule():
    assert [steps_before(update, Joint(2), 3) for update in (1, 2, 5)] == [0, 6, 24]
    assert steps_before(4, Decoupled(2, 5, 1, 9), 3) == 18  # the critic's own do not count
    # A warm-up may end early: steps are counted as if there were none, so that no step takes another's texts.
    assert [steps_before(update, WarmUp(Joint(2), 2, 1, until=0.5), 1) for update in (1, 2, 3, 4)] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    "rows", [TEXTS, [{"prompt": "2+2=", "completion": "4, as always"}, {"prompt": "a", "completion": "b"}]]
)
def test_the_gradient_is_that_of_the_models_own_forward_pass(tmp_path, rows):
    """At temperature 1 whatever the rollout's, over all tokens of a step; micro-batches change nothing."""
    given = {"parts": {"ptx_dataset": rows}, "ptx_coef": 0.5, "ptx_row_length": 12, "temperature": 0.7}
    recipe = recipe_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **given)
    texts = next(recipe.auxiliary.pretraining.batches(0))
    assert len(texts) == 8
    _, rollout, scores = play(recipe)
    found = added(recipe, make_experience(rollout, scores, recipe), texts=texts)
    total = count = 0
    for row, given in zip(texts.tokens.long().split(texts.lengths.tolist()), texts.given.tolist(), strict=True):
        logits = recipe.models.policy.model(row[None]).logits[0, given - 1 : -1]
        total = total - logits.log_softmax(-1).gather(1, row[given:, None]).sum()
        count += len(row) - given
    expected = torch.autograd.grad(0.5 * total / count, weights_of(recipe))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_two_processes_take_a_half_each_and_add_up():
    texts, policy = (
        numbered(7).select([3, 1, 4, 0, 5]),
        make_policy(tiny_causal_lm("gpt2", dtype=torch.float64, layers=1)),
    )
    one = shares(texts, policy, world_size=1)
    two = shares(texts, policy, world_size=2)
    assert len(two) == 2
    for whole, *parts in zip(*one, *two, strict=True):
        torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=0)


def shares(texts, policy, *, world_size):
    """The gradient of each process's share."""
    found = []
    for rank in range(world_size):
        policy.model.zero_grad()
        backend = TorchBackend(rank, world_size, torch.device("cpu"))
        batch = BatchSizes(8, 8, 1, 8, 6, 1, world_size, None, 8)
        for loss, _ in pretraining_losses(texts, 1.0, policy, batch, backend):
            loss.backward()
        found.append([weight.grad.clone() for weight in policy.model.parameters() if weight.grad is not None])
    return found


def test_every_step_of_the_policy_takes_the_next_rows_and_a_skipped_one_keeps_its_own(tmp_path, monkeypatch):
    recipe = small_recipe(
        tmp_path, parts={"ptx_dataset": TEXTS}, ptx_batch_size=2, num_mini_batches=2, critic="decoupled",
        early_stop_kl=1e-9,
    )  # fmt: skip
    taken = []
    plain = update_module.improve
    monkeypatch.setattr(
        update_module, "improve", lambda *a, **k: taken.append((a[1].policy, k["texts"])) or plain(*a, **k)
    )
    for number in (1, 2):
        _, rollout, scores = play(recipe, update=number)
        update(make_experience(rollout, scores, recipe), recipe.schedule.phases(number), recipe)
    of_policy = [texts.digest() for policy, texts in taken if policy]
    assert [texts for policy, texts in taken if not policy] == [None] * 4
    assert len(of_policy) == 4  # the second epoch of each update is left out
    batches = recipe.auxiliary.pretraining.batches(0)
    planned = [next(batches).digest() for _ in range(8)]
    assert of_policy == [planned[0], planned[1], planned[4], planned[5]]


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_texts_and_the_same_bits(tmp_path):
    changed = {"given": {"ptx_dataset": TEXTS}, "ptx_batch_size": 3, "num_mini_batches": 2, "total_episodes": 24}
    changed |= {"ptx_coef": 1.0, "vf_warmup_updates": 1}
    whole = trainer_of(tmp_path, **changed)
    whole.train()
    assert "auxiliary/ptx" in whole.history()[-1]
    expected = everything(whole)
    again = trainer_of(tmp_path, **changed)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert_same_bits(everything(again), expected)
    other = trainer_of(tmp_path, **{**changed, "given": {"ptx_dataset": [*TEXTS[:-1], {"text": "other"}]}})
    with pytest.raises(Exception, match="texts of ptx_dataset_name have changed"):
        other.train(resume_from_checkpoint=tmp_path / "checkpoint-2")


def read(tmp_path, rows, **changes):
    return small_recipe(tmp_path, parts={"ptx_dataset": rows}, **changes).auxiliary.pretraining.texts


def test_texts_end_with_eos_and_answers_stand_behind_their_prompts(tmp_path):
    texts = read(tmp_path / "a", [{"text": "ab"}, {"text": "c"}])
    assert texts.tokens.tolist() == [*ids("ab"), EOS, *ids("c"), EOS]
    assert texts.given.tolist() == [1, 1]
    texts = read(tmp_path / "b", [{"prompt": "ab", "completion": "cd"}])
    assert (texts.tokens.tolist(), texts.given.tolist()) == ([*ids("abcd"), EOS], [2])
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yz"}]
    texts = read(tmp_path / "c", [{"messages": chat}])
    prompt = ids("<|user|>x<eos><|assistant|>")
    assert (texts.tokens.tolist(), texts.given.tolist()) == ([*prompt, *ids("yz"), EOS], [len(prompt)])
    texts = read(tmp_path / "d", [{"body": "ab"}], ptx_text_column="body", prompt_type="chat")
    assert texts.tokens.tolist() == [*ids("ab"), EOS]  # a document is nobody's message


@pytest.mark.parametrize(("rows", "said"), [
    ([{"text": "a"}, {"text": ""}], r"1 of 2 rows of data set 'ptx_dataset', split 'train', cannot be used"),
    ([{"text": 3}], "expected text"),
    ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], "row index 1.*there is no answer"),
    ([{"prompt": "a"}], "no column 'text', and no prompts with answers either"),
    ([{"input_ids": [1, 2]}], "no column 'text', and no prompts with answers either"),
])  # fmt: skip
def test_rows_that_are_no_texts_are_named(tmp_path, rows, said):
    with pytest.raises(DataError, match=f"(?s){said}"):
        read(tmp_path, rows)


def test_bad_rows_may_be_left_out(tmp_path):
    rows = [{"text": "a"}, {"text": ""}, {"text": "b"}]
    recipe = small_recipe(tmp_path, parts={"ptx_dataset": rows}, on_bad_row="drop")
    assert len(recipe.auxiliary.pretraining.texts) == 2
    assert "1 rows of data set 'ptx_dataset', split 'train', were left out: 1 empty." in recipe.introduction


def test_a_stream_and_too_long_rows_are_refused(tmp_path):
    import datasets

    stream = datasets.Dataset.from_list(TEXTS).to_iterable_dataset()
    with pytest.raises(DataError, match="ptx_dataset: it is a stream, and texts are drawn by number"):
        read(tmp_path, stream)
    with pytest.raises(ConfigError, match="ptx_row_length = 600, and the models have 512 positions"):
        read(tmp_path, TEXTS, ptx_row_length=600)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="every text ends with EOS, and the tokenizer has none"):
        small_recipe(tmp_path, parts={"ptx_dataset": TEXTS, "tokenizer": tokenizer}, stop_token_id=[3])


def test_files_several_sets_and_a_split(tmp_path):
    for name, text in (("one.jsonl", '{"text": "a"}\n{"text": "b"}\n'), ("two.txt.jsonl", '{"text": "c"}\n')):
        (tmp_path / name).write_text(text)
    names = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.txt.jsonl")]
    texts = small_recipe(tmp_path / "out", ptx_dataset_name=names, ptx_dataset_split="train[:1]")
    assert texts.auxiliary.pretraining.texts.tokens.tolist() == [*ids("a"), EOS, *ids("c"), EOS]


def test_settings_of_what_is_not_there_are_told(tmp_path, capsys):
    small_recipe(tmp_path, ptx_coef=1.0, teacher_in="loss")
    told = capsys.readouterr().err
    assert "nearstep: ptx_coef has no effect without ptx_dataset_name\n" in told
    assert "nearstep: teacher_in has no effect without a teacher\n" in told
    small_recipe(tmp_path, parts={"ptx_dataset": TEXTS, "teacher_model": tiny_causal_lm(seed=2)}, ptx_coef=1.0)
    assert "no effect" not in capsys.readouterr().err

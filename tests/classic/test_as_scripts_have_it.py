"""What scripts of TRL up to 0.11 use beside `step`: other penalties, stored value heads, arguments of loaders."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HfArgumentParser

from nearstep.classic import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
    respond_to_batch,
)
from nearstep.common.errors import ConfigError, ModelError
from nearstep.models.trl_heads import TrlHead, stored_trl_head
from tests.classic.test_step import QUERIES, RESPONSES, SCORES, logprobs, made
from tests.tiny import byte_tokenizer, tiny_causal_lm


@torch.no_grad()
def every_logprob(model, query, response):
    return model(torch.cat([query, response])[None]).logits[0].log_softmax(-1)[len(query) - 1 : -1]


def returns_of(penalties):
    """λ-returns of values 0 with λ = 0.95: the penalty of each token, and the score at the end."""
    found = []
    for row, score in zip(penalties, (1.0, 2.0, -1.0, 0.5), strict=True):
        rewards = [-0.3 * each for each in row]
        rewards[-1] += score
        found += [sum(0.95**later * reward for later, reward in enumerate(rewards[t:])) for t in range(len(rewards))]
    return found


@pytest.mark.parametrize("penalty", ["abs", "full"])
def test_the_penalty_by_another_measure(penalty, tmp_path):
    policy, other = tiny_causal_lm(layers=1), tiny_causal_lm(layers=1, seed=7)
    rows = []
    for row in zip(QUERIES, RESPONSES, strict=True):
        if penalty == "abs":
            with torch.no_grad():
                rows.append((logprobs(policy, *row) - logprobs(other, *row)).abs().tolist())
        else:
            own, theirs = every_logprob(policy, *row), every_logprob(other, *row)
            rows.append((own.exp() * (own - theirs)).sum(-1).tolist())
    trainer = made(
        tmp_path, model=policy, ref_model=other, kl_penalty=penalty, init_kl_coef=0.3, target=2.0, horizon=100
    )
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    sums = [sum(row) for row in rows]
    assert stats["objective/kl_dist"].tolist() == pytest.approx(sums, abs=1e-4)
    assert stats["objective/kl"] == pytest.approx(sum(sums) / 4, abs=1e-4)
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.3 * sum(sums) / 8, abs=1e-4)
    returns = returns_of(rows)
    assert stats["ppo/returns/mean"] == pytest.approx(sum(returns) / 8, abs=1e-4)
    # The controller steers by the same number: (KL / 2 − 1 within ± 0.2) × 4 rows of 100.
    error = min(max(sum(sums) / 4 / 2 - 1, -0.2), 0.2)
    assert trainer.kl_ctl.value == pytest.approx(0.3 * (1 + error * 4 / 100))


def test_a_head_that_trl_saved_gives_the_values(tmp_path):
    """Values are hidden states of the last layer times the weight, plus the bias; both train, and are saved."""
    policy = tiny_causal_lm(layers=1)
    policy.save_pretrained(tmp_path / "m")
    width = policy.config.hidden_size
    weight = torch.linspace(-1, 1, width)[None]
    file = tmp_path / "m" / "model.safetensors"
    save_file({**load_file(file), "v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.25])}, file,
              metadata={"format": "pt"})  # fmt: skip
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "m")
    expected = []
    with torch.no_grad():
        for query, response in zip(QUERIES, RESPONSES, strict=True):
            states = policy.model(torch.cat([query, response])[None]).last_hidden_state[0]
            expected += (states[len(query) - 1 : -1] @ weight[0] + 0.25).tolist()
    trainer = made(tmp_path, model=model, ref_model=create_reference_model(model))
    stats = trainer.step(QUERIES, RESPONSES, SCORES)
    assert stats["ppo/val/mean"] == pytest.approx(sum(expected) / 8, abs=1e-4)
    trainer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "saved")
    assert not torch.equal(again.head.weight, weight)
    assert again.head.bias.item() != 0.25
    assert torch.equal(again.head.weight, trainer.recipe.models.critic.head.weight)


def test_heads_of_other_models_and_pickles(tmp_path, capsys):
    assert stored_trl_head(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert stored_trl_head(tmp_path) is None
    assert "is a pickle and is not read: the head starts at zero" in capsys.readouterr().err
    with pytest.raises(ModelError, match="reads 3 numbers, and hidden states have 16"):
        TrlHead(torch.zeros(1, 3), None).check(16)


def test_responses_of_a_length_without_a_trainer():
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(layers=1), seed=3)
    queries = torch.tensor([[5, 6], [7, 8]])
    first, second = respond_to_batch(model, queries, txt_len=6), respond_to_batch(model, queries, txt_len=6)
    assert first.shape == (2, 6)
    assert not torch.equal(first, second)  # the draws go on
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(layers=1), seed=3)
    assert torch.equal(respond_to_batch(again, queries, txt_len=6), first)
    best = respond_to_batch(model, queries, txt_len=3, top_k=1)
    assert torch.equal(best, respond_to_batch(again, queries, txt_len=3, top_k=1))


def test_what_loaders_are_given(capsys):
    load, tiny = AutoModelForCausalLMWithValueHead.from_pretrained, tiny_causal_lm(layers=1)
    model = load(tiny, device_map=None, load_in_8bit=False, low_cpu_mem_usage=True, revision="main")
    assert "low_cpu_mem_usage change nothing here" in capsys.readouterr().err
    assert model.to("cuda").eval().cuda().train().pretrained_model is tiny
    assert len(list(model.parameters())) == len(list(tiny.parameters()))
    model.print_trainable_parameters()
    assert "trainable%: 100.0000" in capsys.readouterr().out
    for given, said in (
        ({"load_in_8bit": True}, "load_in_8bit = True: a policy whose weights are packed"),
        ({"reward_adapter": "a"}, "reward_adapter = 'a': score responses by a reward model"),
        ({"peft_conf": 1}, "unknown peft_conf; did you mean peft_config"),
    ):
        with pytest.raises(ConfigError) as error:
            load(tiny, **given)
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="float16 loses small gradients"):
        load("folder", torch_dtype=torch.float16)
    with pytest.raises(ModelError, match="policies are decoders"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained("t5")


def test_a_data_loader_that_is_kept_can_be_gone_over_again(tmp_path):
    rows = [{"input_ids": [n], "query": str(n)} for n in range(10)]
    loader = made(tmp_path, dataset=rows).dataloader
    passes = [[name for batch in loader for name in batch["query"]] for _ in range(2)]
    assert len(loader) == 2
    assert [len(each) for each in passes] == [8, 8]
    assert passes[0] != passes[1]


def test_settings_come_from_flags_and_can_be_read_back(tmp_path):
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        ["--reward_model", "sentiment-analysis:a/b", "--query_dataset", "imdb", "--batch_size", "8",
         "--mini_batch_size", "4", "--kl_penalty", "abs", "--adap_kl_ctrl", "False"]
    )  # fmt: skip
    assert config.reward_model.split(":") == ["sentiment-analysis", "a/b"]
    assert (config.query_dataset, config.batch_size, config.adap_kl_ctrl) == ("imdb", 8, False)
    with pytest.warns(UserWarning, match="forward_batch_size is called mini_batch_size"):
        assert PPOConfig(batch_size=4, forward_batch_size=2).mini_batch_size == 2  # as in TRL: steps depend on it
    with pytest.raises(ConfigError, match="lr_scheduler: leave it out"):
        PPOTrainer(PPOConfig(use_cpu=True), tiny_causal_lm(layers=1), None, byte_tokenizer(), lr_scheduler=object())


def test_what_scripts_ask_of_the_accelerator(tmp_path):
    trainer = made(tmp_path)
    accelerator = trainer.accelerator
    assert accelerator.state.deepspeed_plugin is None
    assert accelerator.unwrap_model(trainer.model) is trainer.model
    assert accelerator.local_process_index == 0
    accelerator.wait_for_everyone()
    rows = trainer.generate(QUERIES, return_prompt=False, batch_size=2, remove_padding=True, max_new_tokens=2,
                            do_sample=True)  # fmt: skip
    assert len(rows) == 4

"""What ends a response and what rewards read of it, in whole runs: the record shows what was judged."""

import json

import pytest
import torch

from nearstep.config.ppo import PPOConfig
from nearstep.trainer import PPOTrainer
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm

THINK, END = 258, 259


def run(folder, **changes):
    """A policy that writes <think> and <end_of_turn> often; what its reward saw, and the records."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "<end_of_turn>"]})
    model, seen = tiny_causal_lm(vocab_size=260), []
    model.generation_config.eos_token_id = [256, END]
    with torch.no_grad():
        hidden = model.model(torch.tensor([tokenizer("Say")["input_ids"]])).last_hidden_state[0, -1]
        model.lm_head.weight[[THINK, END]] = hidden * torch.tensor([[0.8], [0.7]])

    def remember(completions, completion_ids):
        seen.extend(zip(completions, completion_ids, strict=True))
        return [float("<think>" in text) for text in completions]

    config = PPOConfig(
        output_dir=str(folder), response_length=10, total_episodes=32, batch_size=16, num_ppo_epochs=1,
        use_cpu=True, num_sample_generations=2, **changes,
    )  # fmt: skip
    PPOTrainer(
        args=config, processing_class=tokenizer, model=model, train_dataset=[{"prompt": "Say"}] * 32,
        reward_funcs=[remember],
    ).train()  # fmt: skip
    records, samples = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("rollouts.jsonl", "samples.jsonl")
    )
    return seen, records, samples


def test_a_response_ends_with_any_end_and_its_record_shows_what_was_judged(tmp_path):
    seen, records, samples = run(tmp_path, non_eos_penalty=True, penalty_reward_value=-7.0)
    said = {tuple(record["completion_ids"]): record for record in records}
    assert any(END in ids for ids in said)
    for ids, record in said.items():
        assert END not in ids[:-1]
        assert record["finished"] is (ids[-1] in (256, END))
        assert record["final_score"] == (record["total_score"] if record["finished"] else -7.0)
    judged = {tuple(ids): text for text, ids in seen}
    assert {ids: record["completion"] for ids, record in said.items()} == {ids: judged[ids] for ids in said}
    assert {sample["response"] for sample in samples} <= set(judged.values())
    marked = [record for record in records if THINK in record["completion_ids"]]
    assert marked
    assert all("<think>" in record["completion"] and record["total_score"] == 1.0 for record in marked)
    assert all("<end_of_turn>" not in record["completion"] for record in records)


@pytest.mark.parametrize("changes", [slow({"stop_token": "eos"}), {"stop_token_id": [256]}], ids=str)
def test_one_end_alone_may_be_kept(tmp_path, changes):
    _, records, _ = run(tmp_path, **changes)
    assert any(END in record["completion_ids"][:-1] and "<end_of_turn>" in record["completion"] for record in records)

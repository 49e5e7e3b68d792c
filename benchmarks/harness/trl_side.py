"""TRL's trainers on a workload, measured; runs in TRL's own environment.

TRL's code runs as it is. What is wrapped only looks at the clock, or says where a response ends: the token that
`generate` has drawn is replaced by EOS where the row's planned length is reached, and an EOS or PAD that was drawn
before is replaced by a word. Log-probabilities are untouched; rows that are done are padded until the longest is done,
as always.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from trl.experimental.dppo import DPPOConfig, DPPOTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.harness.meter import Meter, memory_of
from benchmarks.harness.workload import (
    LengthPlan,
    Workload,
    arbitrary_reward,
    causal_model,
    scalar_model,
    text_of,
    tokenizer,
)

COMMON: dict[str, Any] = {
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,  # on a CPU autocast gains nothing; the models themselves are bfloat16 where it is asked for
    "gradient_checkpointing": False,
    "seed": 0,
}


def end_as_planned(model: PreTrainedModel, workload: Workload) -> None:
    """Let every `generate` of this model end its rows where the plan says, and check that they did."""
    plan, generate = LengthPlan.of(workload), model.generate

    def planned(*given: Any, **named: Any) -> Any:
        rows = zip(named["input_ids"], named["attention_mask"].bool(), strict=True)
        lengths = plan.lengths([ids[mask].tolist() for ids, mask in rows])
        with drawn_tokens_end_at(torch.tensor(lengths, device=named["input_ids"].device), workload):
            output = generate(*given, **named)
        responses = output.sequences[:, named["input_ids"].shape[1] :]
        assert (responses != workload.pad).sum(1).tolist() == lengths, "a response did not end as planned"
        return output

    model.generate = planned


@contextmanager
def drawn_tokens_end_at(lengths: Tensor, workload: Workload) -> Iterator[None]:
    """Replace what torch.multinomial draws, step by step."""
    multinomial, step = torch.multinomial, 0

    def draw(probabilities: Tensor, num_samples: int) -> Tensor:
        nonlocal step
        step += 1
        drawn = multinomial(probabilities, num_samples)
        drawn = drawn.where(drawn < workload.eos, 0)
        return torch.where((lengths == step)[:, None], workload.eos, drawn)

    torch.multinomial = draw
    try:
        yield
    finally:
        torch.multinomial = multinomial


def new_ppo(workload: Workload, folder: str, meter: Meter) -> PPOTrainer:
    """PPOTrainer with a critic of its own; samples of one prompt are rows of the data set."""
    config = PPOConfig(
        output_dir=folder, total_episodes=workload.updates * workload.rows, stop_token="eos",
        per_device_train_batch_size=workload.micro_rows,
        gradient_accumulation_steps=workload.rows // workload.micro_rows, num_ppo_epochs=workload.epochs,
        response_length=workload.response_length, num_sample_generations=0, use_cpu=workload.device == "cpu", **COMMON,
    )  # fmt: skip
    rows = [ids for ids in workload.prompts() for _ in range(workload.generations)]
    data = Dataset.from_dict({"input_ids": rows})
    policy = causal_model(workload)
    end_as_planned(policy, workload)
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer(workload), model=policy, ref_model=None,
        reward_model=scalar_model(workload, seed=2), value_model=scalar_model(workload, seed=3), train_dataset=data,
        eval_dataset=data,
    )  # fmt: skip
    _watch_ppo(trainer, meter)
    return trainer


def _watch_ppo(trainer: PPOTrainer, meter: Meter) -> None:
    """Generate is batch_generation, the update begins with the first forward pass of policy and critic together."""
    ppo_trainer.batch_generation = _timed(ppo_trainer.batch_generation, meter, "generate", "score")
    forward = ppo_trainer.forward

    def watched(model: Any, *given: Any) -> Any:
        if model is trainer.model:
            meter.mark("update")
        return forward(model, *given)

    ppo_trainer.forward = watched


def new_dppo(workload: Workload, folder: str, meter: Meter) -> DPPOTrainer:
    """DPPOTrainer, critic-free, with groups of samples."""
    steps = workload.rows // workload.micro_rows
    config = DPPOConfig(
        output_dir=folder, max_steps=workload.updates * workload.epochs, num_iterations=workload.epochs,
        per_device_train_batch_size=workload.micro_rows, gradient_accumulation_steps=steps,
        num_generations=workload.generations, max_completion_length=workload.response_length,
        divergence_type=workload.trust_region, divergence_topk=workload.top_k,
        use_cpu=workload.device == "cpu", **COMMON,
    )  # fmt: skip
    policy = causal_model(workload)
    end_as_planned(policy, workload)
    trainer = DPPOTrainer(
        model=policy, reward_funcs=arbitrary_reward, args=config, processing_class=tokenizer(workload),
        train_dataset=Dataset.from_dict({"prompt": [text_of(ids) for ids in workload.prompts()]}),
    )  # fmt: skip
    trainer._generate_single_turn = _timed(trainer._generate_single_turn, meter, "generate", "score")
    scored = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = _timed(scored, meter, None, "update")
    return trainer


def _timed(function: Callable[..., Any], meter: Meter, before: str | None, after: str) -> Callable[..., Any]:
    """The function between two marks."""

    def timed(*given: Any, **named: Any) -> Any:
        if before is not None:
            meter.mark(before)
        result = function(*given, **named)
        meter.mark(after)
        return result

    return timed


def run_rollout(workload: Workload, meter: Meter) -> None:
    """`batch_generation`, as PPOTrainer calls it."""
    policy = causal_model(workload)
    end_as_planned(policy, workload)
    policy.generation_config.eos_token_id = workload.eos
    queries = (
        tokenizer(workload)
        .pad(
            {"input_ids": [ids for ids in workload.prompts() for _ in range(workload.generations)]}, return_tensors="pt"
        )["input_ids"]
        .to(workload.device)
    )
    config = GenerationConfig(
        max_new_tokens=workload.response_length, temperature=0.7 + 1e-7, top_k=0.0, top_p=1.0, do_sample=True,
        eos_token_id=workload.eos, pad_token_id=workload.pad,
    )  # fmt: skip
    meter.start()
    for _ in range(workload.updates):
        meter.mark("generate")
        ppo_trainer.batch_generation(policy, queries, 64, workload.pad, config)
        meter.mark("other")
    meter.mark(None)


def run(workload: Workload, meter: Meter) -> None:
    """Train or generate, and measure."""
    if workload.kind == "rollout":
        run_rollout(workload, meter)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer = (new_ppo if workload.kind == "ppo" else new_dppo)(workload, folder, meter)
        meter.start()
        trainer.train()
        meter.mark(None)


def main() -> None:
    """Run a workload and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True, help="a Workload as JSON")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(**json.loads(options.workload))
    meter = Meter(memory_of(workload.device), workload.device)
    run(workload, meter)
    options.output.write_text(json.dumps(meter.record()))


if __name__ == "__main__":
    main()

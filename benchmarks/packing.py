"""What packing and the own decode loop bring, as ratios measured in one run: `make bench`.

Both ways do the same work on the same random model and rows of the same lengths: the policy's forward and backward pass
over prompt and response, and sampling of the responses. "padded" is the layout of a left-padded batch with logits
everywhere and `model.generate`; it says nothing about any other library's overhead.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from nearstep.models.distribution import Sampling
from nearstep.models.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.transformers_engine import GenerationSettings, TransformersEngine
from nearstep.streams import stream
from nearstep.types import Prompts, Rollout

VOCABULARY, ROWS, LONGEST_PROMPT, LIMIT = 32_000, 16, 128, 64


def new_model() -> PreTrainedModel:
    """A random decoder of about 13 million weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def rows() -> tuple[list[list[int]], list[int]]:
    """Prompts of 16 to 128 tokens; responses of 40 % of the limit on average, as rows end early in training."""
    draws = stream(0, "benchmark")
    lengths = torch.randint(16, LONGEST_PROMPT + 1, (ROWS,), generator=draws).tolist()
    responses = torch.randint(4, int(0.8 * LIMIT), (ROWS,), generator=draws).tolist()
    prompts = [torch.randint(0, VOCABULARY, (length,), generator=draws).tolist() for length in lengths]
    return prompts, responses


def packed_update(rollout: Rollout) -> Callable[[], None]:
    """Forward and backward over packed rows, head at the actions."""
    policy = make_policy(new_model())

    def step() -> None:
        rollout_logprobs(policy, rollout, Sampling(0.7)).sampled.mean().backward()

    return step


def padded_update(rollout: Rollout) -> Callable[[], None]:
    """Forward and backward over left-padded prompts and right-padded responses, logits everywhere."""
    model = new_model()
    ids, mask, places = padded(rollout)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def step() -> None:
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits / 0.7
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        logprobs[places[:, 1:]].mean().backward()

    return step


def padded(rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask, and where actions stand, in a [rows, width] layout."""
    queries, responses = rollout.prompt_ids(), rollout.completion_ids()
    left, right = max(map(len, queries)), LIMIT
    shape = (len(queries), left + right)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    places = torch.zeros(shape, dtype=torch.bool)
    for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
        ids[row, left - len(query) : left + len(response)] = torch.tensor(query + response)
        mask[row, left - len(query) : left + len(response)] = 1
        places[row, left : left + len(response)] = True
    return ids, mask, places


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(name: str, one: Callable[[], object], two: Callable[[], object], rounds: int) -> dict[str, object]:
    """Run both in turn after one warm-up each; medians and their ratio."""
    one(), two()
    times = [(seconds(one), seconds(two)) for _ in range(rounds)]
    ours, plain = (statistics.median(column) for column in zip(*times, strict=True))
    return {"work": name, "nearstep_seconds": ours, "padded_seconds": plain, "ratio": ours / plain}


def main() -> None:
    """Print the table and write it to benchmarks/results/packing.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/packing.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    prompts, limits = rows()
    given = Prompts(prompts, [""] * ROWS, {}, list(range(ROWS)))
    engine = TransformersEngine(GenerationSettings(Sampling(0.7), LIMIT, stop_ids=(), seed=0))
    engine.load(make_policy(new_model()), version=0)
    rollout = engine.generate(given, limits=limits)

    plain = new_model()
    left = max(map(len, prompts))
    ids = torch.tensor([[0] * (left - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (left - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def library_generate() -> None:
        plain.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(limits),
            do_sample=True,
            temperature=0.7,
            top_k=0,
            pad_token_id=0,
        )

    results = [
        compare("update: forward and backward", packed_update(rollout), padded_update(rollout), options.rounds),
        compare("rollout", lambda: engine.generate(given, limits=limits), library_generate, options.rounds),
    ]
    table = Table("work", "nearstep s", "padded s", "ratio")
    for result in results:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in result.values()))
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

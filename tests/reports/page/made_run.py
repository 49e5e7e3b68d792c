"""The folder of a run that was never made: every file by its contract, as large as asked."""

import json
import math
import random
from pathlib import Path

from nearstep.reports import run_folder

SHARES = ("generate", "score", "experience", "update", "other")
ATTACK = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"
TEXT = "my neighbour sold the old guitar in Detroit and I am so tired about it should we tell them now"
WORDS = TEXT.split()


def make_run(
    folder: Path, *, updates: int = 40, rows: int = 8, tokens: int = 12, logged: int = 20, seed: int = 0
) -> Path:
    """Write the folder: `rows` episodes an update, `tokens` of each, token numbers of `logged` updates."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    every = max(1, updates // logged)
    prompts = [f"POST {number}: {_text(rng, 25)}\n\nTL;DR:" for number in range(max(8, rows * updates // 8))]
    prompts[0] += ATTACK
    lines: dict[str, list[dict]] = {name: [] for name in run_folder.RECORDS}
    for update in range(1, updates + 1):
        lines[run_folder.METRICS].append(_metrics(rng, update, updates, rows))
        if update % every == 0:
            lines[run_folder.METRICS].append(_evaluation(rng, update, updates, rows))
            lines[run_folder.PROFILES].append(_profile(rng, update))
        for row in range(rows):
            line = _episode(rng, update, (update - 1) * rows + row, prompts, tokens)
            lines[run_folder.ROLLOUTS].append(line)
            if update % every == 0 and row < 2:
                lines[run_folder.TOKENS].append(_tokens(rng, line, tokens))
        if update in (1, updates // 2, updates):
            for query in prompts[:3]:
                lines[run_folder.SAMPLES].append({
                    "update": update, "query": query, "response": _text(rng, tokens), "score": rng.gauss(1, 1),
                    "start_response": "I am so tired about it.", "start_score": 0.25,
                })  # fmt: skip
                lines[run_folder.EVAL_ROLLOUTS].append({
                    "update": update, "row": prompts.index(query), "prompt": query, "completion": _text(rng, tokens),
                    "score": 1.0, "start_score": 0.5, "start_completion": "I am tired.", "reference": None, "kl": 0.4,
                    "response_length": tokens,
                })  # fmt: skip
    lines[run_folder.ALERTS].append({
        "update": max(1, updates // 2), "level": "warn", "rule": "kl_high", "title": "KL leaves its band",
        "text": f"objective/kl is 31, above 25 {ATTACK}", "look_at": "objective/kl, samples of the last updates",
        "next": "raise kl_coef or lower learning_rate",
    })  # fmt: skip
    for name, records in lines.items():
        text = "".join(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n" for record in records)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / run_folder.SETTINGS).write_text("output_dir: made\nseed: 7\nkl_coef: 0.1\nrun_name: made\n")
    (folder / run_folder.INFO).write_text(json.dumps(_info(rows, updates)))
    return folder


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def _metrics(rng: random.Random, update: int, updates: int, rows: int) -> dict:
    done = update / updates
    shares = [rng.uniform(0.5, 1) for _ in SHARES]
    near = lambda middle, width: middle + rng.gauss(0, width)  # noqa: E731
    score = 1 + 2 * (1 - math.exp(-3 * done))
    return {
        "update": update, "episode": update * rows, "epoch": done * 2,
        "objective/rlhf_reward": near(score - 0.2, 0.1), "objective/scores": near(score, 0.1),
        "objective/scores_raw": near(score, 0.1), "objective/scores_std": near(0.6, 0.05),
        "objective/kl": near(6 * done, 0.2), "objective/kl_per_token": near(0.3 * done, 0.01),
        "objective/kl_k3": abs(near(6 * done, 0.2)), "objective/entropy": near(5 - 2 * done, 0.1),
        "objective/non_score_reward": -0.3 * done, "objective/kl_coef": 0.05,
        "reward/model": near(score, 0.1), "reward/model_std": 0.6, "reward/brevity": near(0.3, 0.05),
        "policy/approxkl_avg": abs(near(0.01, 0.004)), "policy/clipfrac_avg": abs(near(0.12, 0.03)),
        "policy/masked_positive": abs(near(0.1, 0.03)), "policy/masked_negative": abs(near(0.14, 0.03)),
        "policy/entropy_avg": near(1.2 - 0.6 * done, 0.02), "policy/grad_norm": abs(near(0.8, 0.2)),
        "policy/mismatch_kl": 1e-12, "loss/policy_abs": near(0.8, 0.05), "loss/value_avg": abs(near(0.4, 0.1)),
        "value/grad_norm": abs(near(2, 0.3)), "val/clipfrac_avg": abs(near(0.1, 0.03)), "val/ratio": near(1, 0.01),
        "val/ratio_var": abs(near(0.05, 0.02)), "val/ratio_max_gap_first": 2e-6, "val/num_eos_tokens": 1.0,
        "val/explained_variance": near(0.7 * done, 0.05), "response/length_mean": near(13 + 20 * done, 1),
        "response/length_max": 48, "response/truncated": 0.01, "lr": 3e-6 * (1 - done), "vf_lr": 3e-6,
        "optimizer/steps": update * 4, "eps": near(60, 3), "tokens_per_second": near(5000, 300),
        "seconds": near(1, 0.05), "my/own_number": near(3, 1),
        **{f"time/{name}": share / sum(shares) for name, share in zip(SHARES, shares, strict=True)},
    }  # fmt: skip


def _evaluation(rng: random.Random, update: int, updates: int, rows: int) -> dict:
    done = update / updates
    return {
        "update": update, "episode": update * rows, "epoch": done * 2,
        "eval/objective/scores": 1 + 2 * (1 - math.exp(-3 * done)), "eval/objective/kl": 6 * done,
        "eval/judge/facts": 0.5 + 0.8 * done - 0.9 * done**2 + rng.gauss(0, 0.02),
        "eval/win_rate/start": 0.5 + 0.3 * done, "eval/response/length_mean": 13 + 20 * done,
    }  # fmt: skip


def _episode(rng: random.Random, update: int, episode: int, prompts: list[str], tokens: int) -> dict:
    score = rng.gauss(1.5, 0.7)
    prompt = prompts[episode % len(prompts)]
    return {
        "update": update, "episode": episode, "prompt": prompt,
        "completion": _text(rng, tokens) + (ATTACK if episode % 97 == 0 else ""),
        "scores": {"model": score, "brevity": None}, "total_score": score, "extras": {}, "final_score": score,
        "finished": rng.random() > 0.1, "response_length": tokens, "input": prompt, "columns": {},
        "prompt_ids": [1, 2, 3], "completion_ids": list(range(tokens)),
        "numbers": {"advantage_abs": abs(rng.gauss(0, 0.5)), "value_error": abs(rng.gauss(0, 0.3)),
                    "kl": rng.gauss(2, 1), "mismatch": 1e-6 * rng.random()},
    }  # fmt: skip


def _tokens(rng: random.Random, line: dict, count: int) -> dict:
    column = lambda middle, width: [rng.gauss(middle, width) for _ in range(count)]  # noqa: E731
    return {
        "update": line["update"], "episode": line["episode"], "prompt": line["prompt"], "score": line["final_score"],
        "finished": line["finished"], "tokens": [" " + rng.choice(WORDS) for _ in range(count)],
        "token_ids": list(range(count)), "sampled_logprob": column(-1, 0.5), "old_logprob": column(-1, 0.5),
        "logprob": column(-1, 0.5), "ref_logprob": column(-1.2, 0.5), "kl": column(0.1, 0.1), "value": column(1, 0.3),
        "return": column(1.2, 0.3), "reward": [0.0] * (count - 1) + [line["final_score"]],
        "advantage": column(0, 0.6), "ratio": column(1, 0.1),
        "region_weight": [float(rng.random() > 0.15) for _ in range(count)], "entropy": column(1, 0.2),
    }  # fmt: skip


def _profile(rng: random.Random, update: int) -> dict:
    return {
        "update": update,
        "value_deciles": [{"value": 0.3 * n, "return": 0.3 * n + rng.gauss(0, 0.1), "count": 50} for n in range(10)],
        "along_row": [{"position": n, "value": 1 + 0.05 * n, "return": 1.2, "advantage_abs": 0.5 - 0.02 * n,
                       "kl": 0.1 * n, "count": 80} for n in range(10)],
        "masked": [{"sign": sign, "position": n, "share": rng.uniform(0, 0.3), "count": 40}
                   for sign in "+-" for n in range(10)],
    }  # fmt: skip


def _info(rows: int, updates: int) -> dict:
    return {
        "schema": 1, "seed": 7, "recipe": None, "parent": None,
        "attempts": [{
            "command": ["nearstep", "ppo", "--output_dir", "made"], "started": "2026-01-02T03:04:05+00:00",
            "after_update": 0, "versions": {"nearstep": "0.1.0", "torch": "2.13.0"}, "commit": "c50500a",
            "uncommitted_changes": False, "python": "3.11.2", "machine": "Linux x86_64", "devices": ["cpu"],
            "processes": 1,
        }],
        "batch": [{"name": "episodes per update", "value": str(rows), "how": f"{rows} prompts × 1 responses"},
                  {"name": "updates", "value": str(updates), "how": "1.00 passes"}],
        "changed": {"kl_coef": {"value": 0.1, "default": 0.05}},
    }  # fmt: skip

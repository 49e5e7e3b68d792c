"""The page docs/health.md: every rule with its thresholds, what to look at, and what to do next.

`python -m nearstep.reports.health.document > docs/health.md` writes it.
"""

from nearstep.reports.health.rule import Rule
from nearstep.reports.health.verdict import RULES
from nearstep.reports.metrics import escape_cell

HEAD = """# Health

Is my run well? Rules hold the metrics of a run against thresholds and say what they see: while it trains, and afterwards.

```bash
nearstep doctor runs/demo/ppo          # the verdict on a run, its cause, and the evidence; --json for programs
nearstep doctor                        # the machine: versions, extras, processors, memory, disk, GPU, sandbox
```

A run is **ill** if a rule sees an error, **to be watched** if one sees a warning, else **healthy**. `nearstep doctor` ends with 0
for a healthy run or one to be watched, with 3 for an ill run or a machine with a problem, and with 1 or 2 where it could say
nothing. In Python: `trainer.health()`, or `judge_run(RunFolder(folder))`; both give a `Verdict` with `state`, `cause` and
`alerts`.

While a run trains, the rules look at every logged update (`health_checks = false` switches them off). What is new of what they
say stands on the screen in one line, once, and again if it becomes worse; in `alerts.jsonl` with title, text, level and update;
and as the metric `health/level` (0, 1, 2) in `metrics.jsonl` and at every tracker. Nothing is stopped by it.

One illness shows in many curves. Where a rule speaks of which another one follows, the other is a consequence: it comes after
its cause, with *follows from*, and the screen leaves it out. Thresholds are few and wide: a rule that cries over a healthy run
teaches to look away. Trends are those of Mann and Kendall, in standard deviations of chance (2 is 1 in 20), so a noisy curve needs
more updates to have one; *start* and *end* are medians over the first and the last quarter of the updates, of five at the most.
[health.md](../benchmarks/results/health.md) of the benchmarks has what the rules say of healthy runs of several kinds, and of runs
made ill on purpose.

What rules cannot see: a reward that asks for the wrong thing in well-made, varied answers of usual length. Look at sample
completions, and keep a judge that training does not see (`eval_dataset`): its fall is one of the signs of a hacked reward.

"""  # noqa: E501

# What the documentation of TRL's PPOv2 advised, and which rule does it here.
COOKBOOK = (
    (
        "`objective/rlhf_reward` should keep going up",
        "`does_not_rise`, `against_the_reward`, `no_spread`, `penalty_decides`",
    ),
    (
        "`val/ratio` floats around 1.0; 2.0, 1000.0 or 0.1 mean that updates are too drastic",
        "`steps_too_large`; before the first step of an update: `mismatch`, `too_old`, `sampled_otherwise`, "
        "`random_forward`",
    ),
    (
        "out of memory: a smaller `per_device_train_batch_size`, more `gradient_accumulation_steps`",
        "no rule: a run that is out of memory ends, and has no curve. `nearstep doctor` says what is free; "
        "docs/performance.md what takes it",
    ),
    ("several GPUs: DeepSpeed stage 3", "no rule, for the same reason"),
    (
        "the EOS trick, `--non_eos_penalty --stop_token eos`",
        "`never_ends`, `endings_lost` and `cut_off` say when it is needed",
    ),
)


def document() -> str:
    """The whole page."""
    parts = [HEAD + "## The cookbook of PPOv2, by rule\n\n| advice | here |\n|---|---|"]
    parts += [f"| {advice} | {escape_cell(here)} |" for advice, here in COOKBOOK]
    return "\n".join([*parts, "", "## Rules", "", "In the order of causes.", "", *map(_section, RULES)])


def _section(rule: Rule) -> str:
    watches = ", ".join(f"`{name}`" for name in rule.watches)
    lines = [
        f"### `{rule.name}`",
        "",
        f"{rule.title}.",
        "",
        f"- **Watches** {watches}",
        f"- **Speaks when** {rule.condition}",
        f"- **Look at** {rule.look_at}",
        f"- **Next** {rule.next}",
    ]
    if rule.follows:
        lines.append(f"- **Follows from** {', '.join(f'`{name}`' for name in rule.follows)}, where they speak too")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(document(), end="")

"""Troubleshooting: what one sees, which rule sees it, and the first thing to do; from the rules of health."""

from benchmarks.harness.results import table

from nearstep.reports.health.verdict import RULES
from nearstep.reports.metrics import escape_cell

HEAD = """# Troubleshooting

Start with the verdict. It names the cause, the numbers behind it, and the next step.

```bash
nearstep doctor runs/demo/ppo
```

| what happens | where to look |
| --- | --- |
| it stops with `nearstep: …` and no traceback | the sentence says what to do; [errors](errors.md) has every class, and the words can be searched for here |
| it stops with a traceback | code of yours that ran in it, or a fault of nearstep |
| it was killed, or the machine went down | `--resume auto`; `unfinished.json` in the run's folder says what ended it: [saving](saving.md) |
| it hangs | at half of `wait_timeout_seconds` a line says what is awaited: [saving](saving.md#what-is-awaited-and-for-how-long) |
| it is out of memory | lower `max_tokens_per_microbatch` and `local_rollout_forward_batch_size`; `gradient_checkpointing`: [performance](performance.md) |
| it is slow | `time/…` in the metrics says where: [performance](performance.md) |
| it does not start: package, GPU, sandbox | `nearstep doctor` without a run looks at the machine |
| it trains, and does not learn | below |

## By what the curves show

In the order of causes: where several fit, mend the first. Each line is a rule of [health](health.md), where its thresholds stand.

"""


def page() -> str:
    """The page docs/troubleshooting.md."""
    rows = [
        (
            escape_cell(rule.title),
            ", ".join(f"`{name}`" for name in rule.watches[:3]),
            escape_cell(rule.next),
            f"[`{rule.name}`](health.md#{rule.name})",
        )
        for rule in RULES
    ]
    return HEAD + table(("what is wrong", "seen in", "do", "rule"), rows)

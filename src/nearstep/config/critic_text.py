"""Settings of a privileged critic: text from the data set that the critic reads and the policy never sees."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nearstep.common.spelling import nearest
from nearstep.config.settings import Problem, Settings, option, without_effect

PROMPT = "{prompt}"
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class CriticTextSettings(Settings):
    """What the critic reads beside the prompt."""

    critic_columns: tuple[str, ...] = option(
        (),
        "columns of the data set that the critic reads and the policy never sees, such as reference answers or rubrics",
    )
    critic_template: str | None = option(
        None,
        "how it reads them: text with {NAME} for each of critic_columns, and {prompt} for the prompt's own tokens; if "
        "not given, each column behind its name and a colon, then the prompt",
    )
    critic_text_tokens: int | None = option(
        None, "most tokens of that text; the end of a longer one is left out. No limit but the critic's if not given",
        at_least=1,
    )  # fmt: skip


def critic_text_problems(config: CriticTextSettings, *, trunk: str) -> Iterator[Problem]:
    """Columns and a template that do not fit each other, or a critic that cannot read otherwise than the policy."""
    columns, template = config.critic_columns, config.critic_template
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        yield Problem(f"critic_columns names {', '.join(twice)} more than once", ("critic_columns",))
    if columns and trunk == "shared":
        yield Problem(
            "critic_columns gives the critic more to read than the policy, and with critic_trunk = shared both read in "
            "one pass: use critic_trunk = separate or adapter",
            ("critic_columns", "critic_trunk"),
        )
    if not columns or template is None:
        return
    if template.count(PROMPT) != 1:
        yield Problem(
            f"critic_template has {PROMPT} {template.count(PROMPT)} times: write it once, where the prompt stands",
            ("critic_template",),
        )
    for name in columns:
        if f"{{{name}}}" not in template:
            yield Problem(
                f"critic_template has no {{{name}}}, and critic_columns names it: put it in, or leave the column out",
                ("critic_template", "critic_columns"),
            )
    for name in dict.fromkeys(PLACE.findall(template)):
        if name not in (*columns, "prompt"):
            near = nearest(name, (*columns, "prompt"))
            meant = f"did you mean {{{near}}}?" if near else "add it to critic_columns, or take it out"
            yield Problem(f"critic_template has {{{name}}}, which is none of critic_columns: {meant}",
                          ("critic_template", "critic_columns"))  # fmt: skip


def critic_text_remarks(config: CriticTextSettings) -> Iterator[str]:
    """Settings without effect."""
    return without_effect(
        config, ("without critic_columns", not config.critic_columns, ("critic_template", "critic_text_tokens"))
    )

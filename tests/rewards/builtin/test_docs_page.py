"""The documentation is what the code says, and says something of every name."""

import re
from pathlib import Path

import pytest
import yaml

from nearstep.common.errors import ConfigError
from nearstep.rewards.builtin import Regex
from nearstep.rewards.builtin.describe import details, overview
from nearstep.rewards.builtin.metadata import parameters
from nearstep.rewards.builtin.other_names import COUNTERPARTS
from nearstep.rewards.builtin.spec import read_spec
from nearstep.rewards.builtin.table import BUILT_INS
from tests.rewards.builtin.docs_page import renewed

PAGE = Path(__file__).parents[3] / "docs" / "rewards_builtin.md"
# Every name of a reward function in AlignTune.
ALIGNTUNE = """
    length brevity conciseness readability fluency diversity engagement coherence logical_consistency commonsense
    politeness helpfulness honesty hallucination factuality bias harmlessness causal_reasoning counterfactual_reasoning
    medical_accuracy legal_compliance financial_accuracy relevance instruction_following context_relevance
    temporal_consistency sentiment safety toxicity semantic_similarity bleu rouge meteor bertscore math_correctness
    math_reasoning counterfactual_math code_syntax code_quality code_execution code_completeness code_correctness
    mbpp_reward image_relevance audio_quality
"""


def test_the_page_is_current():
    remedy = "docs/rewards_builtin.md is old: python -m tests.rewards.builtin.docs_page docs/rewards_builtin.md"
    written = PAGE.read_text()
    assert re.findall(r"<!-- made: (.+) -->", written) == ["overview", "rewards", "other names"]
    assert written == renewed(written), remedy
    assert renewed(re.sub(r"(?m)^\| .*\n", "", written)).count("\n| [") >= len(
        BUILT_INS
    )  # what is missing is made anew


def test_its_examples_run():
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    exec(blocks["python"])
    for entry in yaml.safe_load(blocks["yaml"])["reward_funcs"]:
        read_spec(entry)
    words = blocks["bash"].split()
    for entry in words[words.index("--reward_funcs") + 1 : words.index("--reward_weights")]:
        read_spec(entry)
    assert read_spec(yaml.safe_load(blocks["yaml"])["reward_funcs"][1]) == Regex(pattern=r"\d{1,3} apples")


def test_every_name_of_aligntune_has_a_counterpart_or_a_reason():
    section = PAGE.read_text().split("## Coming from AlignTune")[1]
    same_names = {name for name, here in re.findall(r"^\| (\w+) \| \[(\w+)\]", section, re.MULTILINE) if name == here}
    assert same_names | set(COUNTERPARTS) == set(ALIGNTUNE.split())
    assert same_names <= set(BUILT_INS)
    assert not set(COUNTERPARTS) & set(BUILT_INS)
    assert all(entry.here or len(entry.why) > 20 for entry in COUNTERPARTS.values())


@pytest.mark.parametrize("name", BUILT_INS)
def test_every_reward_stands_in_list_details_and_page_with_all_its_parameters(name):
    assert re.search(rf"^  {name} +-?\d to \d", overview(), re.MULTILINE)
    shown = details(name)
    for parameter in parameters(BUILT_INS[name]):
        assert f"\n    {parameter.name}=" in shown
    assert "gaming" in shown
    assert f"\n### {name}\n" in PAGE.read_text()


def test_details_of_what_is_none():
    with pytest.raises(ConfigError, match="'hallucination' is no built-in reward: use grounding or entailment"):
        details("hallucination")


def test_lines_fit_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, (overview() + "\n" + details("code_tests")).splitlines())) <= 80

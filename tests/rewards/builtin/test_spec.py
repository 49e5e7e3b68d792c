"""Built-in rewards written in a setting: what is read, and what is said of what cannot be."""

import pytest

from nearstep.common.errors import ConfigError
from nearstep.rewards.builtin import Keywords, LengthTarget, OverlongPenalty, Regex, Rouge, Tags
from nearstep.rewards.builtin.other_names import COUNTERPARTS
from nearstep.rewards.builtin.spec import meaning, model_of, problems_of, read_spec
from nearstep.rewards.builtin.table import BUILT_INS
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.loading import load_function


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("rouge", Rouge()),
        ("rouge:", Rouge()),
        ("length_target:words=40", LengthTarget(words=40)),
        ("rouge:variant=rouge2,reference=summary,stem=true", Rouge(variant="rouge2", reference="summary", stem=True)),
        (
            "overlong_penalty:maximum_tokens=1e3, buffer_tokens=100",
            OverlongPenalty(maximum_tokens=1000, buffer_tokens=100),
        ),
        ("keywords:words=blue,new york, C++", Keywords(words=("blue", "new york", "C++"))),
        ("keywords:words=a,b,column=other", Keywords(words=("a", "b"), column="other")),
        ("tags:names=plan", Tags(names=("plan",))),
        (r"regex:pattern=\d{1,3}:x=y", Regex(pattern=r"\d{1,3}:x=y")),
        (r"regex:pattern=a\,b=c,whole=false", Regex(pattern="a,b=c", whole=False)),
    ],
)
def test_what_is_read(spec, expected):
    assert read_spec(spec) == expected
    assert load_function(spec) == expected


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("rogue", r"'rogue' is no built-in reward and no folder; did you mean rouge\? nearstep rewards lists them"),
        ("zzzzzz:a=1", "'zzzzzz' is no built-in reward and no folder; nearstep rewards lists them"),
        (
            "length_target:wrods=3",
            r"no parameter 'wrods' \(did you mean words\?\)\. Its parameters: words=120 \(number",
        ),
        ("length_target:120", "no parameter '120'. Its parameters: words=120"),
        ("length_target:words=many", "words = 'many' must be a number. Its parameters: words=120"),
        ("length_target:words=0", "words = '0' must be at least 1"),
        ("length_target:words=3,words=4", "words is given twice"),
        ("regex", "regex needs pattern: write regex:pattern=…. Its parameters: pattern=… .*; whole=true .*"),
        ("rouge:variant=rouge9", "must be one of rouge1, rouge2, rougeL, rougeLsum"),
        ("regex:pattern=a,b=c", r"regex has no parameter 'b'"),
        ("json:strict=true", "json has no parameter 'strict'. It has no parameters."),
    ],
)
def test_what_is_refused(spec, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_spec(spec)
    assert len(problems_of(spec)) == 1


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_a_name_of_another_library_is_answered_with_its_counterpart_or_the_reason(name):
    with pytest.raises(ConfigError, match=f"'{name}' is no built-in reward: ") as refusal:
        read_spec(name)
    assert COUNTERPARTS[name].why in str(refusal.value)


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_counterparts_are_there(name):
    for spec in COUNTERPARTS[name].here:
        assert spec.partition(":")[0] in BUILT_INS
        if ":" in spec and "entailment" not in spec:
            read_spec(spec)


def test_what_a_setting_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rouge").mkdir()
    (tmp_path / "my_model").mkdir()
    meanings = {
        "rouge": "built-in", "./rouge": "model", "my_model": "model", "owner/model": "model", "rogue": "built-in",
        "rogue:words=3": "built-in", "regex:pattern=a/b": "built-in", "rewards.py:f": "file", "a/b/r.py:f": "file",
        "regex:pattern=x.py:f": "built-in", "rewards.py": "file", ":f": "file",
    }  # fmt: skip
    assert {entry: meaning(entry) for entry in meanings} == meanings


def test_models_behind_rewards_are_known_before_they_are_needed():
    entries = ["sentiment:model=owner/mood", "rouge", "owner/reward", "rewards.py:f"]
    assert [model_of(entry) for entry in entries] == ["owner/mood", None, "owner/reward", None]


@pytest.mark.parametrize(("name", "kind"), BUILT_INS.items(), ids=BUILT_INS.keys())
def test_a_reward_is_reported_under_its_name(name, kind):
    needed = {"regex": {"pattern": "a"}, "overlong_penalty": {"maximum_tokens": 9, "buffer_tokens": 3}}
    models = {"classifier": {"model": "m", "label": "x"}}
    has_model = "model" in kind.__dataclass_fields__
    reward = kind(**needed.get(name, models.get(name, {"model": "m"} if has_model else {})))
    assert FunctionReward(reward).name == name

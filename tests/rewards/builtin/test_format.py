"""Format rewards: regular expressions, JSON, schemas and tags."""

import json

import pytest

from nearstep.common.errors import ConfigError, RewardError
from nearstep.rewards.builtin import Json, JsonSchema, Regex, Tags
from tests.rewards.builtin.asking import value, values

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture
def schema_file(tmp_path):
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    return str(file)


# --- Regular expressions


def test_the_whole_text_or_a_part_must_match():
    assert values(Regex(pattern=r"\d{1,3} apples"), "12 apples", " 12 apples\n", "I have 12 apples") == [1.0, 1.0, 0.0]
    assert values(Regex(pattern=r"\d{1,3} apples", whole=False), "I have 12 apples", "apples") == [1.0, 0.0]


def test_a_dot_matches_line_ends():
    assert value(Regex(pattern="<a>.*</a>"), "<a>one\ntwo</a>") == 1.0


def test_a_pattern_that_matches_nothing_at_all_is_not_met_by_silence():
    assert value(Regex(pattern=".*"), " ") == 0.0


def test_a_wrong_pattern_is_refused_as_it_is_made():
    with pytest.raises(ConfigError, match=r"regex: '\(' is no regular expression: missing \)"):
        Regex(pattern="(")


def test_a_search_that_takes_for_ever_is_ended_and_names_the_row():
    reward = Regex(pattern="(a|aa)+$", timeout_seconds=0.05)
    with pytest.raises(RewardError, match=r"more than 0\.05 s for completion 1"):
        values(reward, "aaa", "a" * 60 + "b")


# --- JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, 2.5, null]}', 1.0),
        (' \n"text"\n', 1.0),
        ('```json\n{"a": 1}\n```', 1.0),
        ("```\n[]\n```\n", 1.0),
        ("{}", 1.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1} and more', 0.0),
        ('Here it is:\n```json\n{"a": 1}\n```', 0.0),
        ('{"a": NaN}', 0.0),
        ("[1,]", 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json(text, expected):
    assert value(Json(), text) == expected


def test_a_schema_in_a_file_holds_for_all_rows(schema_file):
    reward = JsonSchema(schema=schema_file)
    reward.check_columns([])
    texts = ['{"name": "Ann", "age": 3}', '{"name": ""}', '{"age": 3}', '{"name": "A", "x": 1}', "Ann"]
    assert values(reward, *texts) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_schema_in_a_column_holds_for_its_row():
    schemas = ['{"type": "array"}', '{"type": "object"}', None, ""]
    assert values(JsonSchema(), "[]", "[]", "[]", "[]", schema=schemas) == [1.0, 0.0, None, None]


def test_a_schema_without_demands_takes_empty_content():
    assert value(JsonSchema(), "{}", schema='{"type": "object"}') == 1.0


def test_the_draft_is_the_one_that_the_schema_names():
    # Of a draft of 2012 exclusiveMinimum is a flag, later a number.
    old = '{"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": true}'
    assert values(JsonSchema(), "3", "4", schema=[old, old]) == [0.0, 1.0]


def test_a_value_nested_deeper_than_can_be_checked_is_not_accepted():
    nested = '{"type": "array", "items": {"$ref": "#"}}'
    assert values(JsonSchema(), "[[[]]]", "[" * 400 + "]" * 400, schema=[nested, nested]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "row 0 is no JSON object"),
        ("{", "row 0 is no JSON object"),
        ('{"type": "thing"}', "the schema of row 0 is none: 'thing' is not valid"),
        ('{"$ref": "http://localhost:1/x"}', "refers to .*http://localhost:1/x"),
    ],
)
def test_a_schema_that_is_none_is_an_error_and_nothing_is_fetched(text, complaint):
    with pytest.raises(RewardError, match=complaint):
        value(JsonSchema(), "{}", schema=text)


def test_no_schema_at_all_is_told_before_the_run(tmp_path):
    with pytest.raises(
        RewardError, match=r"no column 'schema'. Columns handed over: answer. .* json_schema:column=COLUMN"
    ):
        JsonSchema().check_columns(["answer", "prompt"])
    with pytest.raises(RewardError, match=r"cannot read the schema .*absent\.json"):
        JsonSchema(schema=str(tmp_path / "absent.json")).check_columns([])
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"type": 3}')
    with pytest.raises(RewardError, match=r"the schema of .*wrong.json is none"):
        JsonSchema(schema=str(wrong)).check_columns([])


# --- Tags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>so</think><answer>4</answer>", 1.0),
        ("Well. <think>so</think> then\n<answer>4</answer>.", 1.0),
        ("<think>so</think>4", 0.5),
        ("<answer>4</answer><think>so</think>", 0.5),
        ("<think> </think><answer>4</answer>", 0.5),
        ("<think>so</think><answer>4</answer><answer>5</answer>", 0.5),
        ("<think>so<answer>4</answer></think>", 0.5),
        ("</think>so<think><answer>4</answer>", 0.5),
        ("<think>so <answer>4", 0.0),
        # Gamed: one letter is something.
        ("<think>x</think><answer>y</answer>", 1.0),
    ],
)
def test_tags(text, expected):
    assert value(Tags(), text) == expected


def test_tags_have_names_of_their_own():
    assert value(Tags(names=("plan",)), "<plan>a</plan>") == 1.0
    for names in ((), ("a", "a")):
        with pytest.raises(ConfigError, match="give each tag once, at least one"):
            Tags(names=names)

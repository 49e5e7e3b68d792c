"""R31: six secrets, in the environment, an address, headers and settings, are shown nowhere."""

import json
import re
import traceback

import pytest

from nearstep.cli.main import main
from nearstep.common.errors import ConfigError, NearstepError
from nearstep.common.secrets import public_address, secret_parts, shown_words, without_secrets
from tests.lanes import slow
from tests.rewards.test_remote import Scripted
from tests.tiny import byte_tokenizer, tiny_causal_lm

CANARIES = {
    "HF_TOKEN": "hf_canary1234567890", "WANDB_API_KEY": "canary2-abcdef", "AWS_SECRET_ACCESS_KEY": "canary3/abc+def",
    "JUDGE": "canary4-abcdef",
}  # fmt: skip
PATH, ROW = "canary5abcdef", "canary6abcdef"
ALL = [*CANARIES.values(), PATH, ROW]


@pytest.fixture
def secrets(monkeypatch):
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("secrets")
    tiny_causal_lm().save_pretrained(place / "policy")
    byte_tokenizer().save_pretrained(place / "policy")
    (place / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"number {n}"}) for n in range(8)))
    return place


def scored(handler, question):
    """A reward for each completion; what it was asked with is in an error of one row."""
    rewards = [float(len(row["completion"])) for row in question["rows"]]
    handler.answer(200, {"content-type": "application/json"}, json.dumps({"rewards": rewards}).encode())


def echo(handler, question):
    """As Express answers an unknown path, and with the headers that came."""
    said = f"Cannot POST {handler.path} for {handler.headers['authorization']}".encode()
    handler.answer(404, {}, said)


def shown_and_written(out, capfd) -> list[str]:
    shown = capfd.readouterr()
    written = [path.read_bytes().decode("utf-8", "replace") for path in out.rglob("*") if path.is_file()]
    return [shown.out, shown.err, *written, *(str(path) for path in out.rglob("*"))]


@pytest.mark.parametrize(("answer", "code"), [slow((scored, 0)), (echo, 1)])
def test_r31_a_run_against_a_server_with_a_secret_path(answer, code, secrets, folder, tmp_path, capfd):
    with Scripted(answer) as server:
        words = {
            "model_name_or_path": folder / "policy", "dataset_name": folder / "prompts.jsonl", "output_dir": tmp_path,
            "reward_url": f"http://127.0.0.1:{server.port}/hook/{PATH}", "reward_url_token_env": "JUDGE",
            "reward_url_retries": 0, "total_episodes": 16, "per_device_train_batch_size": 8, "response_length": 4,
            "save_steps": 1, "report_to": "tensorboard", "use_cpu": "true", "run_name": "watched",
        }  # fmt: skip
        assert main(["ppo", *(word for name, value in words.items() for word in (f"--{name}", str(value)))]) == code
        assert server.headers[0]["authorization"] == "Bearer canary4-abcdef"
    texts = shown_and_written(tmp_path, capfd)
    assert len(texts) > 8 or code
    assert [secret for secret in ALL if any(secret in text for text in texts)] == []
    if code == 0:
        written = (tmp_path / "run.yaml").read_text()
        assert f"reward_url: http://127.0.0.1:{server.port}/***\n" in written
        assert main(["ppo", "--config", str(tmp_path / "run.yaml")]) == 2
        assert "reward_url was left out of this file, for it may hold a secret: give --reward_url again" in (
            capfd.readouterr().err
        )


WRONG = {
    "a password that breaks the port": ["--reward_url", f"http://me:{PATH}/pw@host/score"],
    "a user": ["--reward_url", f"http://me:{PATH}@host/score"],
    "a query": ["--reward_url", f"http://host/score?key={PATH}"],
    "two addresses": ["--reward_url", f"http://host/{PATH}", f"http://other/{PATH}"],
    "an address of another setting": ["--reward_urls", f"http://u:{PATH}@host/score"],
    "a token for its variable": ["--reward_url", "http://h/score", "--reward_url_token_env", f"sk-{PATH}"],
    "a token like a variable": ["--reward_url", "http://h/score", "--reward_url_token_env", PATH],
    "two tokens": ["--reward_url", "http://h/score", "--reward_url_token_env", PATH, PATH],
    "a dataset with a password": ["--dataset_name", f"https://me:{PATH}@host/data.jsonl"],
    "a signed dataset": ["--dataset_name", f"s3://bucket/data.jsonl?X-Amz-Signature={PATH}"],
    "a word before all": [f"https://me:{PATH}@host/"],
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_messages_about_settings_repeat_no_secret(words, folder, tmp_path, capfd):
    base = ["--model_name_or_path", str(folder / "policy"), "--output_dir", str(tmp_path / "out")]
    assert main(["ppo", *words, *base]) != 0
    shown = capfd.readouterr()
    assert PATH not in shown.out + shown.err


@pytest.mark.parametrize(
    "line",
    ["reward_url: 'http://h/{0}", "a: [{0}", "\t{0}: x", "x: *{0}", "x: !!python/name:{0} y", "reward_url: {{a: {0}}}",
     "reward_url: [http://h/{0}, b]", "- {0}", "a: \x01{0}"],
)  # fmt: skip
def test_a_broken_settings_file_is_told_by_its_line_alone(line, tmp_path, capfd):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\n" + line.format(PATH))
    assert main(["ppo", "--config", str(file)]) == 2
    shown = capfd.readouterr().err
    assert PATH not in shown
    assert "python/name" not in shown or "line" in shown


def test_errors_of_nearstep_take_secrets_out_of_what_they_quote(secrets):
    quoted = f"https://me:{PATH}/x@host/a?b={PATH} and Bearer {PATH} and hf_{PATH}xyz and {CANARIES['WANDB_API_KEY']}"
    for error in (NearstepError(quoted), ConfigError(quoted)):
        said = "".join(traceback.format_exception(error))
        assert PATH not in said
        assert CANARIES["WANDB_API_KEY"] not in said
        assert "https://***@host/a?***" in said


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://127.0.0.1:8000/score", "http://127.0.0.1:8000/score"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        (f"https://host/hook/{PATH}", "https://host/***"),
        (f"https://me:{PATH}@host:1/score?key={PATH}", "https://host:1/score?***"),
        (f"http://me:{PATH}/pw@host/score", "***"),
    ],
)
def test_an_address_is_shown_without_what_may_log_in(address, shown):
    assert public_address(address) == shown
    assert (PATH in address) == any(PATH in part for part in secret_parts(address))


def test_words_of_a_command_are_kept_without_secrets(secrets):
    words = ["nearstep", "ppo", "--hub_token", PATH, "--stop_token", "eos", f"--reward_url=http://h/{PATH}",
             "--reward_url", f"http://u:{PATH}@h/score", "--api-key", PATH, "--dataset_name", f"s3://b/x?k={PATH}",
             "--note", CANARIES["AWS_SECRET_ACCESS_KEY"]]  # fmt: skip
    shown = shown_words(words)
    assert shown == ["nearstep", "ppo", "--hub_token", "***", "--stop_token", "eos", "--reward_url=http://h/***",
                     "--reward_url", "http://h/score", "--api-key", "***", "--dataset_name", "s3://b/x?***",
                     "--note", "***"]  # fmt: skip
    assert without_secrets({"a": [words, 3, None], "b": (f"Basic {PATH}",)})["b"] == ("Basic ***",)


def test_ordinary_texts_stay_as_they_are():
    for text in ("see https://huggingface.co/docs/x#y", "mail a@b.c at http://h/x", "loss = 3 ? 4 : 5", "hf_hub",
                 "a sk-x", "models/sk-learn", "basic english words"):  # fmt: skip
        assert without_secrets(text) == text
    assert re.sub(r"\W", "", public_address("http://h:8/api/v1/score")) == "httph8apiv1score"

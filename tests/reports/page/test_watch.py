"""Who may watch a run, and what is seen when its folder comes, grows, is cut back, and goes."""

import json
import shutil

import pytest
from starlette.testclient import TestClient

from nearstep.cli.main import main
from nearstep.reports.page import watched as watching
from nearstep.reports.page.server import host_names, make_app
from nearstep.reports.page.watched import Watched
from tests.reports.page.made_run import make_run

HERE = "127.0.0.1:8010"
HOSTS = host_names("127.0.0.1", 8010)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "made", updates=6, rows=2, logged=2)


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch):
    monkeypatch.setattr(watching, "LOOK_AGAIN_SECONDS", 0.0)


def test_lines_that_belong_to_no_update_are_told(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 0.7}\n')
    _, words = Watched(tmp_path, 100).look()
    assert "cannot be read" in words
    assert "nearstep compare draws its curves" in words


def client(folder, *, token=None, hosts=HOSTS):
    app = make_app(Watched(folder, 100), hosts=hosts, token=token)
    return TestClient(app, base_url=f"http://{HERE}", follow_redirects=False)


@pytest.mark.parametrize(("host", "origin", "status"), [
    (HERE, None, 200),
    ("localhost:8010", None, 200),
    (HERE, f"http://{HERE}", 200),
    ("127.0.0.1", None, 421),
    ("127.0.0.1:8010.evil.example", None, 421),
    ("evil.example:8010", None, 421),
    (HERE, "http://evil.example", 403),
    (HERE, "http://localhost:8010", 403),
    (HERE, f"https://{HERE}", 403),
    (HERE, "null", 403),
])  # fmt: skip
def test_host_and_origin_are_checked_to_the_letter(made, host, origin, status):
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    for path in ("/", "/data"):
        assert client(made).get(path, headers=headers).status_code == status


def test_elsewhere_a_token_is_needed_by_header_or_by_the_cookie_that_the_first_visit_gives(made):
    asked = client(made, token="secret", hosts=None)
    assert asked.get("/").status_code == 401
    assert asked.get("/data?token=secret").status_code == 401
    assert asked.get("/?token=wrong").status_code == 401
    assert asked.get("/data", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert asked.get("/data", headers={"authorization": "Bearer secret"}).status_code == 200
    first = asked.get("/?token=secret")
    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(first.headers["set-cookie"].split("; "))
    assert asked.get("/data").status_code == 200  # the client kept the cookie
    assert asked.get("/data", headers={"origin": "http://evil.example"}).status_code == 403


def test_the_page_may_ask_its_server_alone_and_no_frame_may_hold_it(made):
    answer = client(made).get("/")
    assert "connect-src &#39;self&#39;" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"


def test_a_folder_that_comes_grows_is_cut_back_and_goes(made, tmp_path):
    folder = tmp_path / "later"
    asked = client(folder)
    newest = asked.get("/data").json()
    assert newest["live"]["words"] == "Waiting for the run to begin."

    def newer():
        nonlocal newest
        answer = asked.get(f"/data?after={newest['live']['version']}")
        if answer.status_code == 204:
            return None
        newest = answer.json()
        return newest["run"]["updates"]

    assert newer() is None
    folder.mkdir()
    shutil.copy(made / "run.yaml", folder)
    assert newer() == 0
    assert newest["live"]["words"] == "The run has begun; no update is done yet."
    lines = (made / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    assert newer() == 2
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"update": 7')
    assert newer() == 6
    assert newer() is None
    (folder / "metrics.jsonl").write_text(lines[0])
    assert newer() == 1
    (folder / "policy").mkdir()
    (folder / "policy" / "config.json").write_text("{}")
    asked.get("/data")
    assert asked.get("/data").json()["live"]["words"] == "The run has ended."
    shutil.rmtree(folder)
    gone = asked.get("/data").json()
    assert "is gone" in gone["live"]["words"]
    assert gone["run"]["updates"] == 1


def test_a_line_that_is_no_json_is_told_and_passes(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    asked = client(folder)
    assert asked.get("/data").json()["run"]["updates"] == 6
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + "no json\n")
    assert "cannot be read" in asked.get("/data").json()["live"]["words"]
    (folder / "metrics.jsonl").write_text(whole + json.dumps({"update": 7, "objective/scores": 1.0}) + "\n")
    assert asked.get("/data").json()["run"]["updates"] == 7


@pytest.mark.parametrize(("words", "said"), [
    (["watch"], "nearstep watch RUN"),
    (["watch", "run", "--host", "0.0.0.0"], "name it by token_env"),
    (["watch", "run", "--token_env", "NEARSTEP_NO_SUCH"], "is not set"),
])  # fmt: skip
def test_what_is_wrongly_asked_is_told_before_anything_listens(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err

"""The example with a known ceiling: all of it at a toy scale, and at full scale what it promises."""

import pytest

from examples import reward_model


def test_all_parts_run(tmp_path, capsys):
    found = reward_model.main(str(tmp_path), pairs=60, updates=1)
    assert set(found) == {"accuracy", "ceiling", "worth before", "worth after"}
    assert 0.6 < found["ceiling"] < 1
    assert (tmp_path / "ppo" / "policy" / "config.json").is_file()
    assert "The critic starts from the reward model." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_reaches_the_ceiling_and_ppo_uses_it(tmp_path):
    found = reward_model.main(str(tmp_path))
    assert found["accuracy"] > found["ceiling"] - 0.03
    assert found["worth after"] > found["worth before"] + 2

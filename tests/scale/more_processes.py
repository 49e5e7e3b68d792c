"""What one of several processes does for the slow tests of test_two_processes."""

from pathlib import Path

from tests.scale.two_processes import dist_close, play_more


def main(where: Path | str, dumped: Path | str) -> None:
    play_more(Path(where), Path(dumped))
    dist_close()

"""What each of several processes does in test_sharded: the runs of two_processes, their networks in pieces."""

from pathlib import Path

from tests.scale import two_processes


def main(where: str, shard: str, saved_by_one: str) -> None:
    """All runs on pieces over `shard` processes, and one that goes on from what a single process has saved."""
    folder = Path(where)
    two_processes.LAYOUT |= {"dp_shard": int(shard)}
    two_processes.play_all(folder)
    two_processes.resume(folder, Path(saved_by_one))
    two_processes.dist_close()

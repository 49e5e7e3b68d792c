"""What each of several processes does in test_piece_saves: runs that save in pieces, and the same saved whole."""

from dataclasses import replace
from pathlib import Path

from tests.scale import sharded_varieties, tensor_varieties
from tests.scale.sharded_varieties import Variety, play
from tests.scale.two_processes import dist_close

SMALL_FILES = {"max_shard_size": "20KB", "save_steps": 1, "total_episodes": 18}
KINDS = {
    "fsdp": ({"dp_shard": -1}, sharded_varieties.VARIETIES),
    "hsdp": ({"dp_shard": 2, "dp_replicate": 2}, sharded_varieties.VARIETIES),
    "tensor": ({"tp_size": 2}, tensor_varieties.VARIETIES),
    "experts": ({"tp_size": 2, "ep_size": 2}, tensor_varieties.VARIETIES),
    "both": ({"tp_size": 2, "dp_shard": 2}, tensor_varieties.VARIETIES),
}


def main(where: str, kind: str, names: str, resume: str = "") -> None:
    """Varieties on one layout: saved in pieces, saved whole, or gone on with from what others have saved."""
    folder = Path(where)
    layout, varieties = KINDS[kind]
    if resume:
        varieties = KINDS[Path(resume).name][1]
    for name in names.split(","):
        small = with_small_files(varieties[name])
        if resume:
            for form in ("pieces", "whole"):
                saved = Path(resume) / form / name / "checkpoint-1"
                play(folder / form / name, small, resume=str(saved), **layout)
            continue
        play(folder / "pieces" / name, small, **layout)
        play(folder / "whole" / name, small, sharded_checkpoints=False, **layout)
    dist_close()


def with_small_files(variety: Variety) -> Variety:
    return replace(variety, settings={**variety.settings, **SMALL_FILES})

"""What each of two processes does in test_piece_saves where one of them fails in the middle of a save."""

import errno
import os
import signal
from pathlib import Path

from nearstep.checkpoint import files, piece_files, piece_saves
from nearstep.checkpoint.snapshot import PIECES
from tests.scale.piece_processes import KINDS, with_small_files
from tests.scale.sharded_varieties import play
from tests.scale.two_processes import dist_close


def main(where: str, what: str) -> None:
    """A run whose rank 1 is killed, or meets a full disk, while it writes its part of the second checkpoint."""
    write, written, saves = piece_saves.write_boxes, piece_files.own_files, []

    def killed(folder, *given):
        saves.append(folder)
        if len(saves) == 2:
            files.make_folder(folder)
            (folder / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, *given)

    def full(folder, rank):
        saves.append(folder)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(folder, rank)

    if os.environ["RANK"] == "1":
        piece_saves.write_boxes = killed if what == "killed" else write
        piece_saves.own_files = full if what == "full" else written
    layout, varieties = KINDS["fsdp"]
    play(Path(where), with_small_files(varieties["llama"]), on_save_error="continue", **layout)
    assert {folder.name for folder in saves} <= {PIECES}
    dist_close()

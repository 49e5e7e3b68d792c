"""Over how many processes a run of another library goes, and whether its networks lie in pieces over them."""

from collections.abc import Mapping

from nearstep.migration.draft import SettingsDraft


def processes(special: Mapping[str, object], draft: SettingsDraft) -> None:
    """Processes are devices of a machine; what starts on several machines is told."""
    gpus, nodes = draft.whole(special.get("gpus", 1)), draft.whole(special.get("nodes", 1))
    if gpus is None or nodes is None:
        draft.told.append("the number of processes is not known from the file: torchrun --nproc_per_node")
        return
    draft.processes = gpus
    if nodes > 1:
        draft.told.append(f"{nodes} machines: start torchrun on each, with --nnodes {nodes} and --rdzv_endpoint")


def zero_stage(value: object, draft: SettingsDraft) -> None:
    """Stage 3 is written as FSDP2, which needs no further package; stage 2 is there under its own name."""
    stage = draft.whole(value)
    if stage == 3:
        in_pieces(-1, draft)
    elif stage == 2:
        draft.told.append(
            "ZeRO-2: the networks are whole on each process; with DeepSpeed installed give zero_stage = 2"
        )
    else:
        draft.lose(
            "zero_stage",
            value,
            "every process holds the networks whole; zero_stage = 2 divides gradients and "
            "moments, dp_shard = -1 weights too",
        )


def strategy(value: object, draft: SettingsDraft) -> None:
    """verl names what holds the networks."""
    if value in ("fsdp", "fsdp2"):
        in_pieces(-1, draft)
    else:
        draft.lose("strategy", value, "networks are whole, or in pieces by dp_shard (FSDP2)")


def in_pieces(value: object, draft: SettingsDraft) -> None:
    """One process has nothing to share; a size is more than a strategy, whichever comes first."""
    alone = "one process holds the networks whole: with several give dp_shard = -1"
    if draft.processes > 1:
        if draft.settings.get("dp_shard", -1) == -1:
            draft.settings["dp_shard"] = value
    elif alone not in draft.told:
        draft.told.append(alone)

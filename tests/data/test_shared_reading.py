"""Each process tokenises a share of the rows; all have the same prompts, and refuse the same rows."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch

from nearstep.common.errors import DataError
from nearstep.data.encode import encode_prompts
from nearstep.data.load import table_of
from nearstep.data.row_errors import BadRow, RowError
from nearstep.scale.torch_backend import TorchBackend
from tests.data.making import VOCAB_SIZE
from tests.tiny import byte_tokenizer


class Rank(TorchBackend):
    """One of several processes, which are threads that wait for one another."""

    def __init__(self, rank, items, barrier):
        super().__init__(rank, len(items), torch.device("cpu"))
        vars(self).update(items=items, barrier=barrier)

    def gather(self, item):
        self.items[self.rank] = item
        self.barrier.wait(timeout=60)
        found = list(self.items)
        self.barrier.wait(timeout=60)
        return found


ROWS = [{"prompt": f"{'ab' * (n % 5)} {n}"} for n in range(11)]
TABLE = table_of([*ROWS, {"prompt": ""}, {"prompt": "long" * 9}, {"prompt": "last"}], "mine", "train")
LOST = tuple(BadRow(RowError.BROKEN, f"line {n}", ": lost", "") for n in (3, 5))


def encoded(world_size, table, **options):
    settings = {"vocab_size": VOCAB_SIZE, "max_prompt_length": 20, "on_long_prompt": "drop", **options}
    items, barrier = [None] * world_size, Barrier(world_size)

    def encode(rank):
        try:
            return encode_prompts(table, byte_tokenizer(), backend=Rank(rank, items, barrier), **settings)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(encode, range(world_size)))


@pytest.mark.parametrize("world_size", [2, 3, 20])
@pytest.mark.parametrize("broken", [(), LOST])
def test_prompts_are_the_same_for_any_number_of_processes(world_size, broken):
    table = replace(TABLE, broken=broken)
    [alone] = encoded(1, table, on_bad_row="drop")
    assert len(alone) == 12
    for found in encoded(world_size, table, on_bad_row="drop"):
        for name in ("table_rows", "tokens", "ends"):
            assert torch.equal(vars(found)[name], vars(alone)[name])
        assert found.report.sentences() == alone.report.sentences()
        assert found.report.bad == alone.report.bad


def test_all_refuse_what_one_has_met():
    [alone] = encoded(1, TABLE)
    assert "row index 11, column 'prompt'" in alone
    assert encoded(3, TABLE) == [alone] * 3

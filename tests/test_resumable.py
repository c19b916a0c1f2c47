"""speech_llm/resumable.py: work on many items that a kill does not lose."""
import contextlib
import os
import subprocess
import sys

import pytest
from test_bad_input import refused

from speech_llm.resumable import resumable
from speech_llm.rows import PROJECT

SETTINGS = {"model": "m", "beam": 5}
ITEMS = ["ccc", "a", "bb", "a", "dddd", "ee", "fffff"]


class Maker:
    """make() whose result shows which batch an item was in; raises in place of its `kill`-th batch."""
    def __init__(self, kill=None):
        self.batches, self.kill = [], kill

    def __call__(self, items):
        self.batches.append(items)
        if len(self.batches) == self.kill:
            raise KeyboardInterrupt
        return [f"{item} of {'+'.join(items)}" for item in items]


def test_items_come_back_in_order_made_once_and_batched_by_size(tmp_path):
    make, path = Maker(), str(tmp_path / "new" / "x.jsonl")
    results = resumable(path, SETTINGS, ITEMS, make, batch=2)
    assert make.batches == [["a", "bb"], ["ee", "ccc"], ["dddd", "fffff"]]
    assert results[:4] == ["ccc of ee+ccc", "a of a+bb", "bb of a+bb", "a of a+bb"]
    refused(resumable, path, {**SETTINGS, "beam": 1}, ITEMS, make, 2, names=path, says="was made with beam 5 (now 1)")
    with pytest.raises(RuntimeError, match="1 results for 2 items"):
        resumable(str(tmp_path / "lost.jsonl"), SETTINGS, ["a", "b"], lambda items: items[:1], batch=2)


@pytest.mark.parametrize("kill, cut, left", [(1, 0, 3), (3, 0, 1), (3, 1, 2), (None, 5, 1)])
def test_a_killed_run_goes_on_to_the_results_of_an_unbroken_one(tmp_path, kill, cut, left):
    """`kill`: the batch in which it dies; `cut`: bytes of the last lines that never reached the disk."""
    path, second, third = str(tmp_path / "x.jsonl"), Maker(), Maker()
    unbroken = resumable(str(tmp_path / "unbroken.jsonl"), SETTINGS, ITEMS, Maker(), batch=2)
    with contextlib.suppress(KeyboardInterrupt):
        resumable(path, SETTINGS, ITEMS, Maker(kill), batch=2)
    os.truncate(path, os.path.getsize(path) - cut)
    assert resumable(path, SETTINGS, ITEMS, second, batch=2) == unbroken and len(second.batches) == left
    assert resumable(path, SETTINGS, ITEMS, third, batch=2) == unbroken and not third.batches


PROCESS = """
import sys, time
from speech_llm import resumable
resumable.WAIT = 0.01
new = []
def upper(batch):
    time.sleep(0.05)
    new.extend(batch)
    return [item.upper() for item in batch]
results = resumable.resumable(sys.argv[1], {}, sys.argv[2].split(), upper, 2)
print(*new, "/", *results)
"""


def test_processes_share_the_work_and_join_the_results(tmp_path):
    """Three processes, then one that has two items more: nothing is made twice, and all return everything."""
    def start(items, rank, world):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)}
        return subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / "x.jsonl"), items], cwd=PROJECT,
                                stdout=subprocess.PIPE, text=True, env=environment)
    items = "a b c d e f g h i j k l"
    assert [process.communicate()[0] for process in [start(items, rank, 3) for rank in range(3)]] == [
        f"{new} / A B C D E F G H I J K L\n" for new in ("a b g h", "c d i j", "e f k l")]
    assert sorted(os.listdir(tmp_path)) == ["x.jsonl", "x.jsonl.1", "x.jsonl.2"]
    assert start(items + " y z", 0, 1).communicate()[0] == "y z / A B C D E F G H I J K L Y Z\n"

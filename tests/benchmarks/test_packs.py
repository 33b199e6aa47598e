"""The benchmark of packs: it counts what it says."""

from benchmarks import packs
from prefopt.data import Part
from prefopt.records import Group


def test_a_pack_is_counted_with_what_its_blocks_hold():
    work = packs.Work()
    packs.add_pack(work, [Part(0, (0, 1), Group((0,) * 3, ((1,) * 2, (2,)), pairs=((0, 1),)))])
    assert (work.tokens, work.rows) == (3 + 1, 32)  # without the completions' last tokens
    assert work.allowed == (1 + 2 + 3) + 4  # the prompt's tokens see themselves and those before, and so on
    assert work.queries >= 4
    assert work.scores >= work.allowed


def test_every_budget_is_a_line(capsys):
    assert packs.main(["--pairs", "4", "--budgets", "2048", "9000", "--seeds", "1", "--steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [["4", "2048"], ["4", "9000"]]
    for line in lines:
        floor, possible = map(float, line.split()[2:4])
        assert 1 <= possible <= floor
        assert min(map(float, line.split()[-4:])) >= 1

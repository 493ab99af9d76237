"""Lines of a log for a reader who comes back with a position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.policy.log_lines import lines_after

KEPT = 40


def test_without_a_position_the_end_is_read() -> None:
    found = lines_after(b"one\ntwo\nthree\n", 14, after=None, most=2)
    assert (found.lines, found.position, found.has_gap) == (["two", "three"], 14, False)


def test_a_line_waits_until_it_is_whole() -> None:
    found = lines_after(b"one\ntw", 6, after=None, most=9)
    assert (found.lines, found.position) == (["one"], 4)
    found = lines_after(b"one\ntwo\n", 8, after=found.position, most=9)
    assert (found.lines, found.position) == (["two"], 8)


def test_what_is_cut_off_at_the_front_is_no_line() -> None:
    assert lines_after(b"lf\nwhole\n", 1000, after=None, most=9).lines == ["whole"]


def test_more_than_is_kept_is_told_as_a_gap() -> None:
    found = lines_after(b"lf\nnext\n", 1000, after=17, most=9)
    assert (found.lines, found.position, found.has_gap) == (["next"], 1000, True)
    assert lines_after(b"a\nb\nc\n", 6, after=0, most=2).has_gap


def test_a_log_that_began_anew_is_read_from_its_start() -> None:
    found = lines_after(b"anew\n", 5, after=4000, most=9)
    assert (found.lines, found.position, found.has_gap) == (["anew"], 5, True)


def test_of_a_progress_bar_the_last_word_counts_and_nothing_steers_a_terminal() -> None:
    log = b"10%\r50%\r90%\r\n\x1b[31mred\t!\n\xff\n"
    found = lines_after(log, len(log), after=None, most=9)
    assert found.lines == ["90%", "[31mred\t!", "�"]


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=8), max_size=30), st.data())
def test_a_reader_who_keeps_up_gets_every_line_once(lines: list[str], data: st.DataObject) -> None:
    log = "".join(f"{line}\n" for line in lines).encode()
    position, got, end = 0, [], 0
    while end < len(log):
        end += data.draw(st.integers(1, min(KEPT - 20, len(log) - end)))
        found = lines_after(log[max(0, end - KEPT) : end], end, after=position, most=1000)
        assert not found.has_gap
        position, got = found.position, got + found.lines
    assert got == lines

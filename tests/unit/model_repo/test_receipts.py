"""A ticket that is handed back in another process reaches the engine, and no other does."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pipeline.triton.sources import load_module, model_sources

receipts = load_module(model_sources(), "tensorrt_llm", "receipts")

HAND_BACK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from common import receipts
returns = receipts.Returns(parent=int(sys.argv[2]))
for ticket in sys.argv[3:]:
    returns.hand_back(tuple(map(int, ticket.split(","))))
"""


@pytest.fixture
def book():
    made = receipts.Book()
    yield made
    made.close()


def hand_back(*tickets, parent=None):
    """Hands tickets back from a process of its own, as one that the same server started."""
    words = [",".join(map(str, ticket)) for ticket in tickets]
    models = str(model_sources())
    arguments = [models, str(os.getppid() if parent is None else parent), *words]
    done = subprocess.run(
        [sys.executable, "-c", HAND_BACK, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ticket_that_is_handed_back_is_that_requests_alone(book):
    gone, there = book.issue(), book.issue()
    assert not book.came_back(gone)
    hand_back(gone)
    assert book.came_back(gone)
    assert not book.came_back(there)


def test_a_ticket_that_comes_late_is_not_the_next_requests(book):
    late = book.issue()
    book.retire(late)
    following = book.issue()
    assert following[1] == late[1]
    hand_back(late)
    assert not book.came_back(following)


def test_what_nobody_issued_changes_nothing(book):
    number, place, request = ticket = book.issue()
    hand_back(
        (number + 1, place, request), (number, -1, request), (number, receipts.PLACES, request)
    )
    assert not book.came_back(ticket)


def test_a_book_of_another_servers_processes_is_not_opened(book):
    ticket = book.issue()
    hand_back(ticket, parent=2**22 + 1)
    assert not book.came_back(ticket)


def test_places_are_used_again_and_no_more_are_given_than_there_are(book):
    tickets = [book.issue() for _ in range(receipts.PLACES)]
    assert None not in tickets
    assert len({request for _, _, request in tickets}) == len(tickets)
    assert book.issue() is None
    book.retire(tickets[7])
    assert book.issue()[1] == tickets[7][1]


def test_an_unknown_number_is_not_searched_for_each_time(book, monkeypatch):
    returns = receipts.Returns(parent=os.getppid())
    returns.hand_back(book.issue())
    searched = []
    monkeypatch.setattr(receipts, "parent_of", lambda process: searched.append(process) or 0)
    returns._search_at = time.monotonic() + 60
    for number in range(50):
        returns.hand_back((number, 0, 1))
    assert searched == []

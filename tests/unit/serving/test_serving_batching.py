import asyncio

import numpy as np

from qzhou.serving.batching import GROUPS_IN_FLIGHT, Group, encode_in_groups, fill_percent


def group(rows: int, longest: int, budget: int = 100) -> Group:
    return Group(("x",) * rows, longest, budget)


def test_a_batch_costs_its_rows_times_its_longest_text():
    assert fill_percent([group(2, 10)]) == 20
    assert fill_percent([group(2, 10), group(1, 30)]) == 90


def test_the_share_is_rounded_up_so_that_the_budget_is_never_passed():
    assert fill_percent([group(1, 1, budget=1000)]) == 1
    assert fill_percent([group(1, 1, budget=1000), group(1, 1000, budget=1000)]) > 100


def test_a_text_above_the_budget_fills_a_batch_alone_and_lets_nothing_join():
    assert fill_percent([group(1, 250)]) == 100
    assert fill_percent([group(1, 250), group(1, 1)]) > 100


def test_vectors_return_to_the_rows_of_their_texts():
    texts = ["a", "bb", "ccc", "d"]

    async def forward(one: Group):
        return np.array([[len(text), ord(text[0])] for text in one.texts], dtype=np.float32)

    encoded = asyncio.run(encode_in_groups(texts, [1, 2, 3, 1], forward, rows_of_groups=[[2], [1, 3], [0]], budget=4))

    assert encoded.vectors.tolist() == [[1, 97], [2, 98], [3, 99], [1, 100]]
    assert encoded.token_counts == [1, 2, 3, 1]


def test_a_group_knows_its_longest_text():
    groups = []

    async def forward(one: Group):
        groups.append(one)
        return np.zeros((len(one.texts), 1), dtype=np.float32)

    asyncio.run(encode_in_groups(["a", "b", "c"], [5, 9, 2], forward, rows_of_groups=[[0, 1], [2]], budget=18))

    assert [(one.texts, one.longest, one.budget) for one in groups] == [(("a", "b"), 9, 18), (("c",), 2, 18)]


def test_a_large_request_leaves_room_between_its_groups():
    running = most = 0

    async def forward(one: Group):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return np.zeros((len(one.texts), 1), dtype=np.float32)

    rows = [[row] for row in range(20)]
    asyncio.run(encode_in_groups(["x"] * 20, [1] * 20, forward, rows_of_groups=rows, budget=1))

    assert most == GROUPS_IN_FLIGHT

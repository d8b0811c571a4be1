"""Tables against the counts, orders and worked example of the specification."""

from __future__ import annotations

import pytest

from cace_fast import tables

# l_max: n_monomials, then for nu_max = 1..4 (features, products, merged products)
COUNTS = {
    0: (1, (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    1: (4, (1, 1, 1), (2, 4, 4), (2, 4, 4), (2, 4, 4)),
    2: (10, (1, 1, 1), (3, 10, 10), (4, 19, 16), (4, 19, 16)),
    3: (20, (1, 1, 1), (4, 20, 20), (6, 47, 44), (7, 101, 89)),
    4: (35, (1, 1, 1), (5, 35, 35), (9, 128, 110), (13, 560, 515)),
    5: (56, (1, 1, 1), (6, 56, 56), (12, 254, 236), (22, 2261, 2141)),
    6: (84, (1, 1, 1), (7, 84, 84), (16, 535, 472), (36, 7564, 7264)),
}

MONOMIALS = {
    1: "100 010 001",
    2: "200 110 101 020 011 002",
    3: "300 210 201 120 111 102 030 021 012 003",
    4: "400 310 301 220 211 202 130 121 112 103 040 031 022 013 004",
    6: "600 510 501 420 411 402 330 321 312 303 240 231 222 213 204 150 141 132 123 114 105 "
    "060 051 042 033 024 015 006",
}

FEATURES = {
    (3, 3): "(1,1)(1,2)",
    (4, 3): "(1,1)(1,2)(1,3)(2,2)",
    (5, 3): "(1,1)(1,2)(1,3)(1,4)(2,2)(2,3)",
    (6, 3): "(1,1)(1,2)(1,3)(1,4)(1,5)(2,2)(2,3)(2,4)(3,3)",
    (3, 4): "(1,2,1)",
    (4, 4): "(1,2,1)(1,2,2)(1,3,1)(2,3,1)",
    (5, 4): "(1,2,1)(1,2,2)(1,2,3)(1,3,1)(1,3,2)(1,4,1)(2,3,1)(2,3,2)(2,4,1)(3,4,1)",
}

WORKED = {  # l_max = 3, nu_max = 3: (prefactor; indices), equal products merged where marked
    1: "1;1,1 1;2,2 1;3,3",
    2: "1;4,4 2;5,5 2;6,6 1;7,7 2;8,8 1;9,9",
    3: "1;10,10 3;11,11 3;12,12 3;13,13 6;14,14 3;15,15 1;16,16 3;17,17 3;18,18 1;19,19",
    4: "1;1,1,4 2;1,2,5 2;1,3,6 1;2,2,7 2;2,3,8 1;3,3,9",
    5: "1;1,4,10 2;1,5,11 2;1,6,12 1;1,7,13 2;1,8,14 1;1,9,15 1;2,4,11 2;2,5,13 2;2,6,14 "
    "1;2,7,16 2;2,8,17 1;2,9,18 1;3,4,12 2;3,5,14 2;3,6,15 1;3,7,17 2;3,8,18 1;3,9,19",
}


@pytest.mark.parametrize("l_max", COUNTS)
def test_counts(l_max):
    n_monomials, *by_order = COUNTS[l_max]
    assert tables.n_monomials(l_max) == len(tables.monomials(l_max)) == n_monomials
    for nu_max, counts in enumerate(by_order, 1):
        features = tables.features(l_max, nu_max)
        plain = sum(len(tables.terms(f)) for f in features)
        merged = sum(len(tables.merged_terms(f)) for f in features)
        assert (tables.n_features(l_max, nu_max), plain, merged) == counts


@pytest.mark.parametrize("degree", MONOMIALS)
def test_order_of_monomials(degree):
    got = ["".join(map(str, m)) for m in tables.monomials_of(degree)]
    assert got == MONOMIALS[degree].split()


def test_index_is_the_position():
    for position, monomial in enumerate(tables.monomials(6)):
        assert tables.index(monomial) == position
    assert [tables.offset(degree) for degree in range(5)] == [0, 1, 4, 10, 20]


def test_multinomials_count_tensor_components():
    for degree in range(7):
        assert sum(map(tables.multinomial, tables.monomials_of(degree))) == 3**degree


@pytest.mark.parametrize(("l_max", "nu"), FEATURES)
def test_order_of_features(l_max, nu):
    got = [f.degrees for f in tables.features(l_max, nu) if f.nu == nu]
    assert "".join(str(d).replace(" ", "") for d in got) == FEATURES[l_max, nu]
    orders = [f.nu for f in tables.features(l_max, nu)]
    assert orders == sorted(orders)


def test_worked_example():
    features = tables.features(3, 3)
    assert tables.terms(features[0]) == ((1, (0,)),)
    for number, text in WORKED.items():
        want = [
            (int(p), tuple(map(int, i.split(","))))
            for p, i in (item.split(";") for item in text.split())
        ]
        assert sorted(tables.merged_terms(features[number])) == sorted(want)
        if number != 4:  # the only one of these with equal products
            assert len(tables.terms(features[number])) == len(want)

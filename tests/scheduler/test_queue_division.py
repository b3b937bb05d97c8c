"""How an amount is divided among queues: one line per division.

A queue is written ``name quota/limit/request`` and, where it matters, ``w2`` for its weight, ``p1``
for its priority, ``u1/2`` for its part of past usage; ``*`` is unlimited. Amounts are whole units
unless a case says so. Queues are listed from the eldest to the youngest.
"""

from __future__ import annotations

from fractions import Fraction

import pytest

from spinney.scheduler.queues.fair_share import Claim, divide

LINES = """
enough for everyone               | 10 | a 0/*/3, b 0/*/2             | 3 2
nothing asked for                 | 10 | a 5/*/0, b 0/*/4             | 0 4
nothing there                     | 0  | a 0/*/3, b 0/*/3             | 0 0
a quota holds with nothing there  | 0  | a 2/*/3, b 0/*/3             | 2 0
one queue takes all               | 10 | a 0/*/20                     | 10
equal weights                     | 10 | a 0/*/10, b 0/*/10           | 5 5
the odd one to the eldest         | 9  | a 0/*/9, b 0/*/9             | 5 4
two odd ones to the eldest two    | 8  | a 0/*/9, b 0/*/9, c 0/*/9    | 3 3 2
fewer units than queues           | 2  | a 0/*/9, b 0/*/9, c 0/*/9    | 1 1 0
one unit for two                  | 1  | a 0/*/9, b 0/*/9             | 1 0
three to one                      | 8  | a 0/*/9 w3, b 0/*/9          | 6 2
thirds, the largest rest first    | 10 | a 0/*/10 w2, b 0/*/10        | 7 3
fifths, both rests go out         | 7  | a 0/*/9 w3, b 0/*/9 w2       | 4 3
the larger rest before the elder  | 8  | a 0/*/9 w3, b 0/*/9 w4       | 3 5
weights need not add up to one    | 10 | a 0/*/10 w1/2, b 0/*/10 w1/2 | 5 5
weight 0 takes no surplus         | 8  | a 0/*/8 w0, b 0/*/3          | 0 3
weight 0 keeps its quota          | 8  | a 2/*/8 w0, b 0/*/9          | 2 6
all of weight 0 leave it          | 8  | a 2/*/8 w0, b 1/*/8 w0       | 2 1
quota before surplus              | 8  | a 6/*/8, b 0/*/8             | 7 1
quotas equal, surplus equal       | 8  | a 2/*/8, b 2/*/8             | 4 4
quota is not given unasked        | 8  | a 6/*/2, b 0/*/8             | 2 6
quota of both is all there is     | 4  | a 3/*/4, b 1/*/4             | 3 1
quotas beyond what there is       | 4  | a 4/*/4, b 4/*/4             | 4 4
quotas beyond leave no surplus    | 4  | a 3/*/3, b 2/*/2, c 0/*/4    | 3 2 0
unlimited quota takes all         | 8  | a */*/8, b 0/*/8             | 8 0
unlimited quota as far as asked   | 8  | a */*/3, b 0/*/8             | 3 5
two unlimited quotas              | 8  | a */*/8, b */*/8             | 8 8
unlimited beside a quota          | 8  | a */*/8, b 2/*/8             | 8 2
a limit caps the surplus          | 8  | a 0/2/8, b 0/*/8             | 2 6
a limit caps the quota            | 8  | a 4/2/8, b 0/*/8             | 2 6
limits leave room unused          | 8  | a 0/2/8, b 0/3/8             | 2 3
limit 0 takes nothing             | 8  | a 4/0/8, b 0/*/8             | 0 8
limit at the quota                | 8  | a 2/2/8, b 2/*/8             | 2 6
a content queue leaves the rest   | 9  | a 0/*/1, b 0/*/9, c 0/*/9    | 1 4 4
and the odd one goes on           | 8  | a 0/*/1, b 0/*/9, c 0/*/9    | 1 4 3
two content ones leave theirs     | 9  | a 0/*/1, b 0/*/2, c 0/*/9    | 1 2 6
content in a later round          | 12 | a 0/*/1, b 0/*/5, c 0/*/9    | 1 5 6
content by weight                 | 12 | a 0/*/2 w3, b 0/*/9, c 0/*/9 | 2 5 5
content exactly                   | 9  | a 0/*/3, b 0/*/9, c 0/*/9    | 3 3 3
a priority first                  | 8  | a 0/*/8, b 0/*/8 p1          | 0 8
a priority as far as asked        | 8  | a 0/*/8, b 0/*/5 p1          | 3 5
a priority leaves quotas          | 8  | a 2/*/8, b 0/*/8 p1          | 2 6
a priority of weight 0            | 8  | a 0/*/8, b 1/*/8 w0 p1       | 7 1
a priority with a limit           | 8  | a 0/*/8, b 0/5/8 p1          | 3 5
three priorities                  | 8  | a 0/*/8, b 0/*/3 p1, c 0/*/4 p2 | 1 3 4
two of one priority share first   | 8  | a 0/*/8, b 0/*/8 p1, c 0/*/8 p1 | 0 4 4
what rounding leaves goes down    | 3  | a 0/*/8, b 0/*/8 p1, c 0/*/8 p1 | 1 1 1
down, to the next priority only   | 5  | a 0/*/8, b 0/*/8, c 0/*/8 p1, d 0/*/8 p1 | 0 0 3 2
the rest of a lower priority      | 9  | a 0/*/9, b 0/*/9, c 0/*/2 p1 | 4 3 2
past usage does not count yet     | 12 | a 0/*/12 u3/4, b 0/*/12 u1/4 | 6 6
a larger fleet                    | 100 | a 10/*/50, b 20/*/60, c 0/*/70 w2, d 5/15/40 | 24 34 27 15
"""


def claims_of(text: str) -> list[Claim]:
    return [_claim(part.split(), age) for age, part in enumerate(text.split(","))]


def _claim(words: list[str], age: int) -> Claim:
    name, amounts, *rest = words
    quota, limit, request = (-1 if a == "*" else int(a) for a in amounts.split("/"))
    more = {word[0]: Fraction(word[1:]) for word in rest}
    return Claim(
        name,
        quota,
        limit,
        request,
        more.get("w", Fraction(1)),
        int(more.get("p", 0)),
        f"{age:03d}",
        more.get("u", Fraction(0)),
    )


def lines(text: str) -> list[object]:
    found = []
    for line in text.strip().splitlines():
        sentence, total, claims, want = (part.strip() for part in line.split("|"))
        found.append(
            pytest.param(int(total), claims_of(claims), [int(w) for w in want.split()], id=sentence)
        )
    return found


@pytest.mark.parametrize(("total", "claims", "want"), lines(LINES))
def test_whole_units(total: int, claims: list[Claim], want: list[int]) -> None:
    assert list(divide(total, claims).values()) == want


IN_THOUSANDTHS = """
a device is not split to share it | 3000 | a 0/*/3000, b 0/*/3000       | 2000 1000
a part is given to who asks for it | 3000 | a 0/*/500, b 0/*/3000       | 500 2500
half a device of quota            | 2000 | a 500/*/2000, b 0/*/2000     | 1500 500
parts of quotas add up            | 1000 | a 500/*/1000, b 500/*/1000   | 500 500
the rest goes out by devices      | 2500 | a 0/*/3000, b 0/*/3000       | 1500 1000
nobody gets more than it asks for | 2000 | a 0/*/1500, b 0/*/1500       | 1000 1000
nor by rounding                   | 3000 | a 0/*/1500, b 0/*/1500       | 1500 1500
a fraction that fits its part     | 3000 | a 0/*/1200, b 0/*/3000       | 1200 1800
"""


@pytest.mark.parametrize(("total", "claims", "want"), lines(IN_THOUSANDTHS))
def test_devices_in_thousandths(total: int, claims: list[Claim], want: list[int]) -> None:
    assert list(divide(total, claims, unit=1000).values()) == want


OVER_TIME = """
who had more gets less            | 12 | a 0/*/12 u3/4, b 0/*/12 u1/4 | 3 9
equal pasts change nothing        | 12 | a 0/*/12 u1/2, b 0/*/12 u1/2 | 6 6
no past at all                    | 12 | a 0/*/12, b 0/*/12           | 6 6
who had everything gets nothing   | 12 | a 0/*/12 u1, b 0/*/12 u0     | 0 12
unless nobody else wants it       | 12 | a 0/*/12 u1, b 0/*/2 u0      | 10 2
quotas do not depend on the past  | 12 | a 4/*/12 u1, b 0/*/12 u0     | 4 8
nor do priorities                 | 12 | a 0/*/12 u1 p1, b 0/*/12     | 12 0
"""


@pytest.mark.parametrize(("total", "claims", "want"), lines(OVER_TIME))
def test_shares_over_time(total: int, claims: list[Claim], want: list[int]) -> None:
    assert list(divide(total, claims, history=Fraction(1)).values()) == want

"""A campaign of faults over random load: see `tests.faults`. 30 s where ``CI`` is set; for longer ones, and to repeat
one, ``python -m tests.faults --seconds 3600 --seed N``."""

from __future__ import annotations

import os
import random

from tests.faults.__main__ import describe
from tests.faults.campaign import Campaign


def test_all_promises_are_kept_under_faults() -> None:
    seed = random.SystemRandom().randrange(10**6)
    campaign = Campaign(seed)
    outcome = campaign.run(seconds=30 if os.environ.get("CI") else 15)
    print(describe(outcome))
    assert outcome.violations == [], describe(outcome)
    # Something was done, and not only refused.
    assert outcome.answers.get("transfer 200", 0) > 20

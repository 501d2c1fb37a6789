"""A malicious server against real members: each attack is refused, and the sentence says why."""

from __future__ import annotations

import pytest
from benchmarks.secure_attacks import ATTACKS, Attack

from benchmarks import secure_attacks

SENTENCES = {
    "two_sets_of_survivors": "a signature of site site-001 does not verify",
    "two_sets_each_with_its_own_signatures": "3 sites signed the survivors, and 5 must",
    "two_sets_of_dealers": "a signature of site site-003 does not verify",
    "two_rosters": "the shares from site-002 were changed, or are not meant for it",
    "other_sessions": "site-004 sent keys that do not verify (a signature of site site-004 does not verify)",
    "swapped_key": "site-000 sent keys that do not verify",
    "swapped_transport_key": "site-000 sent keys that do not verify",
    "swapped_commitment": "site-000 sent keys that do not verify",
    "swapped_places": "the key that site site-000 shows is not its own",
    "exchanged_key_places": "site-000 sent keys that do not verify",
    "invented_site": "the key that site site-000 shows is not its own",
    "site_that_was_not_asked": "site-999 was not asked",
    "site_listed_twice": "one of them twice",
    "look_alike_name": r"site-000\u200b is no name for a site",
    "replayed_keys": "site-000 sent keys that do not verify",
    "replayed_roster": "belongs to another session",
    "replayed_shares": "the shares from site-001 were changed, or are not meant for it",
    "replayed_signatures": "a signature of site site-000 does not verify",
    "low_order_key": "site-005 sent a key that gives no secret",
    "unreduced_key": "site-005 sent a key that gives no secret",
    "repeated_key": "site-000 has a key that occurs twice",
    "reflected_shares": "the shares from site-001 were changed, or are not meant for it",
    "misdirected_shares": "the shares from site-002 were changed, or are not meant for it",
    "shares_of_nobody": "the server names site-999 as one that sent it shares",
    "few_dealers": "3 sites sent shares, and 5 must",
    "two_members_alone": "3 to 1,000 sites in a round, and 2 are asked",
    "not_a_member": "site-000 is not a member of the secure sum",
    "roster_below_the_threshold": "3 sites sent keys, and 5 must",
    "roster_without_the_member": "its own keys are not in the roster as it sent them",
    "survivors_below_the_threshold": "3 sites are in the sum, and 5 must",
    "survivors_without_the_member": "it is not in the sum itself",
    "survivors_that_sent_no_shares": "the server names site-000 in the sum",
    "fewer_than_a_site_asks_for": "6 sites sent keys, and 7 must",
    "too_few_signatures": "4 sites signed the survivors, and 5 must",
    "one_signature_for_all": "a signature of site site-000 does not verify",
    "keys_twice": "asked for keys twice or out of turn",
    "shares_twice": "asked for shares twice or out of turn",
    "masked_twice": "asked for masked twice or out of turn",
    "agree_twice": "asked for agree twice or out of turn",
    "both_secrets": "asked for reveal twice or out of turn",
    "out_of_turn": "asked for reveal twice or out of turn",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_it_bares_nobody(attack: Attack) -> None:
    row = secure_attacks.outcome(attack, seed=1)
    assert row["bared"] == row["expected"]
    if row["unnoticed"]:
        assert attack.__name__ not in SENTENCES
        assert row["refused_by"] == 0
    else:
        assert SENTENCES[attack.__name__] in row["sentence"]
        assert row["refused_by"] == row["asked"] > 0


def test_the_table_would_show_bared_codes() -> None:
    """With one bribed site more than the protocol assumes, the same search finds both secrets of a site."""
    assert secure_attacks.outcome(secure_attacks.beyond_the_assumption, seed=1)["bared"] == ["site-000"]

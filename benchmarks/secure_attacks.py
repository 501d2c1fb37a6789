"""What a malicious server of a secure sum gets, attack by attack.

    python -m benchmarks.secure_attacks

Seven sites, of which the server may have bribed two (fewer than 2t - n = 3, as the protocol assumes). Each
attack is carried out against real members. Then everything that the server has seen is put together with the
bribed sites' keys: an honest site is bared if both of its secrets can be computed.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from benchmarks import common, secure_setting
from benchmarks.common import Figures, Table
from benchmarks.secure_setting import Federation, private_keys, refusal
from shepherd.silos.secure import (
    Ed25519Identity,
    Member,
    Session,
    masks,
    messages,
    primitives,
    shamir,
    transcript,
)
from shepherd.silos.secure.member import Phase
from shepherd.silos.secure.messages import Secret

SITES = 7
Refusals = dict[str, str]
"""Honest member that was asked -> the sentence with which it refused; "" if it answered."""
Attack = Callable[[Federation], Refusals]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out every attack and print what it got."""
    return common.run(common.parser(__doc__).parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """One row for each attack."""
    attacks = (*ATTACKS[:3], ATTACKS[-1]) if options.quick else ATTACKS
    rows = [outcome(attack, options.seed) for attack in attacks]
    return {
        "sites": SITES,
        "threshold": secure_setting.session(SITES).threshold,
        "rows": rows,
        "passed": all(
            row["bared"] == row["expected"] and row["refused_by"] == (not row["unnoticed"]) * row["asked"]
            for row in rows
        ),
    }


def outcome(attack: Attack, seed: int) -> Figures:
    """Who refused and how, and whose codes the server could compute after all."""
    made = secure_setting.federation(secure_setting.session(SITES), seed)
    refusals = attack(made)
    bribed = BRIBED if attack is not beyond_the_assumption else MORE_BRIBED
    bared = secure_setting.exposed(made, bribed) if made.seen.roster else set()
    return {
        "attack": " ".join((attack.__doc__ or "").split()).rstrip("."),
        "name": attack.__name__,
        "asked": len(refusals),
        "refused_by": sum(map(bool, refusals.values())),
        "sentence": next(iter(refusals.values()), ""),
        "unnoticed": attack in UNNOTICED,
        "bared": sorted(bared),
        "expected": ["site-000"] if attack is beyond_the_assumption else [],
    }


def tables(figures: Figures) -> list[Table]:
    """Attack, what the server got, and what the first site that refused said."""
    rows = [
        (row["attack"], ", ".join(row["bared"]) or "nothing", f"{row['refused_by']} of {row['asked']}")
        for row in figures["rows"]
    ]
    title = (
        f"A malicious server, {figures['sites']} sites, threshold {figures['threshold']},"
        f" {len(BRIBED)} bribed"
    )
    note = "Where no site refuses, none can notice; but for the last attack, a mask still covers all codes."
    return [Table(title, ("the server", "bares", "refuse"), rows, (note,))]


# the protocol, as far as an attack lets it go --------------------------------------------------------------

BRIBED = secure_setting.names(SITES)[-2:]
MORE_BRIBED = secure_setting.names(SITES)[-3:]


def honest(made: Federation) -> list[str]:
    """The members that follow the protocol."""
    return [name for name in made.members if name not in BRIBED]


def refused(made: Federation, phase: Phase, shown: Mapping[str, bytes], *more: object) -> Refusals:
    """Ask honest members in a phase, and note what they say."""
    found = {}
    for name in honest(made):
        if name in shown:
            codes = (made.codes[name],) if phase is Phase.MASKED else ()
            found[name] = refusal(lambda name=name, codes=codes: made.ask(phase, name, shown[name], *codes))  # type: ignore[misc]
    return found


def to_keys(made: Federation) -> dict[str, bytes]:
    """Everyone sends keys."""
    return {name: made.ask(Phase.KEYS, name) for name in made.members}


def to_roster(made: Federation) -> dict[str, messages.Keys]:
    """Everyone sends keys; the roster before it is sent."""
    digest = made.session.digest()
    return {name: messages.decode_keys(digest, answer) for name, answer in to_keys(made).items()}


def show_roster(made: Federation, roster: Mapping[str, messages.Keys]) -> Refusals:
    """Send one roster to all honest members."""
    made.seen.roster = messages.encode_roster(made.session.digest(), roster)
    return refused(made, Phase.SHARES, dict.fromkeys(made.members, made.seen.roster))


def to_shares(made: Federation) -> dict[str, dict[str, bytes]]:
    """Everyone sends shares: dealer -> for whom -> sealed."""
    made.seen.roster = made.server.roster(to_keys(made))
    digest = made.session.digest()
    answers = {name: made.ask(Phase.SHARES, name, made.seen.roster) for name in made.members}
    made.seen.delivered = made.server.deliveries(answers)
    return {name: messages.decode_shares(digest, answer) for name, answer in answers.items()}


def to_masked(made: Federation) -> None:
    """Everyone sends masked codes."""
    to_shares(made)
    for name in made.members:
        made.server.add(name, made.ask(Phase.MASKED, name, made.seen.delivered[name], made.codes[name]))


def survivors(made: Federation, names: Iterable[str]) -> bytes:
    """A message of these survivors."""
    return messages.encode_survivors(made.session.digest(), names)


def signatures(made: Federation, names: Iterable[str]) -> bytes:
    """A message of what these members answered about survivors."""
    digest = made.session.digest()
    signed = {name: messages.decode_agreed(digest, made.seen.sent[Phase.AGREE][name]) for name in names}
    return messages.encode_signatures(digest, signed)


def asked_in_two_ways(made: Federation, first: Sequence[str], second: Sequence[str]) -> Refusals:
    """Half of the members see one set of survivors, half the other; each is shown whatever was signed."""
    groups = {name: first if place % 2 else second for place, name in enumerate(made.members)}
    for name, names in groups.items():
        if name in names:
            made.ask(Phase.AGREE, name, survivors(made, names))
    shown = {
        name: signatures(made, made.seen.sent[Phase.AGREE].keys() & set(groups[name])) for name in groups
    }
    return refused(made, Phase.REVEAL, {name: shown[name] for name in made.seen.sent[Phase.AGREE]})


# attacks ---------------------------------------------------------------------------------------------------


def two_sets_of_survivors(made: Federation) -> Refusals:
    """Shows two sets of survivors, and both groups all signatures."""
    to_masked(made)
    everyone = list(made.members)
    return asked_in_two_ways(made, everyone, everyone[:2] + everyone[3:])


def two_sets_each_with_its_own_signatures(made: Federation) -> Refusals:
    """Shows two sets of survivors, and each group its own signatures."""
    to_masked(made)
    everyone = list(made.members)
    groups = (everyone, everyone[1:])
    found: Refusals = {}
    for group, names in zip((everyone[:3], everyone[3:5]), groups, strict=True):
        for name in group:
            made.ask(Phase.AGREE, name, survivors(made, names))
    for group in (everyone[:3], everyone[3:5]):
        found |= refused(made, Phase.REVEAL, dict.fromkeys(group, signatures(made, group)))
    return found


def two_sets_of_dealers(made: Federation) -> Refusals:
    """Tells members of two sets of dealers, and of one set of survivors."""
    dealt = to_shares(made)
    digest, everyone = made.session.digest(), list(made.members)
    for place, name in enumerate(everyone):
        without = everyone[0] if place % 2 else everyone[1]
        dealers = [other for other in everyone if other not in (name, without)]
        delivered = messages.encode_delivered(digest, {other: dealt[other][name] for other in dealers})
        made.ask(Phase.MASKED, name, delivered, made.codes[name])
    names = everyone[2:]
    for name in names:
        made.ask(Phase.AGREE, name, survivors(made, names))
    return refused(made, Phase.REVEAL, dict.fromkeys(names, signatures(made, names)))


def two_rosters(made: Federation) -> Refusals:
    """Shows half of the members a roster that leaves one site out."""
    roster = to_roster(made)
    digest, everyone = made.session.digest(), list(roster)
    whole = messages.encode_roster(digest, roster)
    smaller = messages.encode_roster(digest, {name: roster[name] for name in everyone[1:]})
    dealt = {}
    for place, name in enumerate(everyone):
        made.seen.roster = smaller if place % 2 else whole
        dealt[name] = messages.decode_shares(digest, made.ask(Phase.SHARES, name, made.seen.roster))
    delivered = {
        name: messages.encode_delivered(
            digest, {other: dealt[other][name] for other in everyone[1:] if other != name}
        )
        for name in everyone[1:]
    }
    return refused(made, Phase.MASKED, delivered)


def swapped_key(made: Federation) -> Refusals:
    """Puts a mask key of its own in the place of a site's, to sit in the middle."""
    roster, own = to_roster(made), primitives.x25519_public(bytes(range(32)))
    victim = next(iter(roster))
    return show_roster(made, roster | {victim: replace(roster[victim], mask_key=own)})


def swapped_transport_key(made: Federation) -> Refusals:
    """Puts a transport key of its own in the place of a site's, to read the shares for it."""
    roster, own = to_roster(made), primitives.x25519_public(bytes(range(32)))
    victim = next(iter(roster))
    return show_roster(made, roster | {victim: replace(roster[victim], transport_key=own)})


def swapped_commitment(made: Federation) -> Refusals:
    """Puts another commitment in the place of a site's."""
    roster = to_roster(made)
    victim = next(iter(roster))
    return show_roster(made, roster | {victim: replace(roster[victim], commitment=bytes(32))})


def swapped_places(made: Federation) -> Refusals:
    """Lists two sites' keys under each other's names."""
    roster = to_roster(made)
    one, other = list(roster)[:2]
    return show_roster(made, roster | {one: roster[other], other: roster[one]})


def exchanged_key_places(made: Federation) -> Refusals:
    """Lists a site's mask key as its transport key, and the other way round."""
    roster = to_roster(made)
    victim = next(iter(roster))
    keys = roster[victim]
    turned = replace(keys, mask_key=keys.transport_key, transport_key=keys.mask_key)
    return show_roster(made, roster | {victim: turned})


def invented_site(made: Federation) -> Refusals:
    """Signs keys for a site with a key that the federation does not know."""
    roster = to_roster(made)
    victim, stranger = next(iter(roster)), Ed25519Identity(bytes(32))
    unsigned = replace(roster[victim], certificate=stranger.certificate)
    statement = transcript.keys_statement(made.session.digest(), victim, unsigned)
    signed = replace(unsigned, signature=stranger.sign(statement))
    return show_roster(made, roster | {victim: signed})


def site_that_was_not_asked(made: Federation) -> Refusals:
    """Adds a site of its own to the roster."""
    roster = to_roster(made)
    keys = replace(roster[BRIBED[0]], mask_key=primitives.x25519_public(b"m" * 32))
    keys = replace(keys, transport_key=primitives.x25519_public(b"t" * 32))
    return show_roster(made, roster | {"site-999": keys})


def replayed_keys(made: Federation) -> Refusals:
    """Shows a site's keys of an earlier attempt, whose shares it has had."""
    earlier = secure_setting.federation(replace(made.session, attempt="f" * 32), "earlier")
    old = to_roster(earlier)
    roster = to_roster(made)
    victim = next(iter(roster))
    return show_roster(made, roster | {victim: old[victim]})


def replayed_roster(made: Federation) -> Refusals:
    """Sends the whole roster of an earlier attempt."""
    earlier = secure_setting.federation(replace(made.session, attempt="f" * 32), "earlier")
    old = messages.encode_roster(earlier.session.digest(), to_roster(earlier))
    to_keys(made)
    return refused(made, Phase.SHARES, dict.fromkeys(made.members, old))


def replayed_shares(made: Federation) -> Refusals:
    """Delivers shares of an earlier attempt as if they were of this one."""
    earlier = secure_setting.federation(replace(made.session, attempt="f" * 32), "earlier")
    to_shares(earlier)
    to_shares(made)
    start, digest = messages.HEADER_BYTES, made.session.digest()
    delivered = {
        name: messages.MAGIC + bytes([messages.Kind.DELIVERED]) + digest + message[start:]
        for name, message in earlier.seen.delivered.items()
    }
    return refused(made, Phase.MASKED, delivered)


def replayed_signatures(made: Federation) -> Refusals:
    """Shows signatures that were given for the survivors of an earlier attempt."""
    earlier = secure_setting.federation(replace(made.session, attempt="f" * 32), "earlier")
    secure_setting.play(earlier)
    to_masked(made)
    everyone = list(made.members)
    for name in everyone:
        made.ask(Phase.AGREE, name, survivors(made, everyone))
    old = messages.decode_signatures(earlier.session.digest(), earlier.seen.signatures)
    shown = messages.encode_signatures(made.session.digest(), old)
    return refused(made, Phase.REVEAL, dict.fromkeys(everyone, shown))


def other_sessions(made: Federation) -> Refusals:
    """Tells half of the sites of another session: other members are asked."""
    fewer = replace(made.session, members=made.session.members[1:])
    other = secure_setting.federation(fewer, "other")
    roster = to_roster(made)
    theirs = to_roster(other)
    mixed = {name: theirs.get(name, keys) if name > "site-003" else keys for name, keys in roster.items()}
    return show_roster(made, mixed)


def low_order_key(made: Federation) -> Refusals:
    """Has a bribed site send a key of low order, whose secrets everyone knows."""
    return show_roster(made, _with_signed(made, mask_key=bytes(32)))


def unreduced_key(made: Federation) -> Refusals:
    """Has a bribed site send another spelling of the base point, to pass for a new key."""
    return show_roster(made, _with_signed(made, mask_key=(2**255 - 19 + 9).to_bytes(32, "little")))


def repeated_key(made: Federation) -> Refusals:
    """Has a bribed site send another site's mask key as its own."""
    roster = to_roster(made)
    return show_roster(made, _with_signed(made, roster, mask_key=next(iter(roster.values())).mask_key))


def _with_signed(
    made: Federation, roster: dict[str, messages.Keys] | None = None, **changed: bytes
) -> dict[str, messages.Keys]:
    """The roster with other keys of a bribed site, signed by it."""
    found = roster or to_roster(made)
    bribed = BRIBED[0]
    unsigned = replace(found[bribed], **changed)
    statement = transcript.keys_statement(made.session.digest(), bribed, unsigned)
    signed = replace(unsigned, signature=secure_setting.identity(bribed).sign(statement))
    return found | {bribed: signed}


def roster_below_the_threshold(made: Federation) -> Refusals:
    """Shows a roster of one site and its bribed ones."""
    roster = to_roster(made)
    return show_roster(made, {name: roster[name] for name in ("site-000", *BRIBED)})


def roster_without_the_member(made: Federation) -> Refusals:
    """Shows a site a roster that it is not in."""
    roster = to_roster(made)
    made.seen.roster = messages.encode_roster(made.session.digest(), dict(list(roster.items())[1:]))
    return refused(made, Phase.SHARES, {"site-000": made.seen.roster})


def site_listed_twice(made: Federation) -> Refusals:
    """Lists a site twice in the roster."""
    digest, roster = made.session.digest(), to_roster(made)
    whole = messages.encode_roster(digest, roster)
    one = messages.encode_roster(digest, {BRIBED[-1]: roster[BRIBED[-1]]})
    start = messages.HEADER_BYTES
    count = (len(roster) + 1).to_bytes(2, "little")
    twice = whole[:start] + count + whole[start + 2 :] + one[start + 2 :]
    return refused(made, Phase.SHARES, dict.fromkeys(made.members, twice))


def reflected_shares(made: Federation) -> Refusals:
    """Delivers to each site what it sealed itself, as if the other had sent it."""
    dealt = to_shares(made)
    digest = made.session.digest()
    delivered = {name: messages.encode_delivered(digest, sealed) for name, sealed in dealt.items()}
    return refused(made, Phase.MASKED, delivered)


def misdirected_shares(made: Federation) -> Refusals:
    """Delivers to a bribed site's neighbour what was sealed for another."""
    dealt = to_shares(made)
    digest, everyone = made.session.digest(), list(made.members)
    delivered = {}
    for name in everyone:
        wrong = next(other for other in everyone if other != name)
        delivered[name] = messages.encode_delivered(
            digest,
            {dealer: sealed.get(wrong, sealed[name]) for dealer, sealed in dealt.items() if dealer != name},
        )
    return refused(made, Phase.MASKED, delivered)


def shares_of_nobody(made: Federation) -> Refusals:
    """Delivers shares from a site that is not in the roster."""
    dealt = to_shares(made)
    digest, sealed = made.session.digest(), dealt["site-000"]["site-001"]
    shown = {
        name: messages.encode_delivered(digest, {"site-999": sealed} | _for(dealt, name))
        for name in made.members
    }
    return refused(made, Phase.MASKED, shown)


def _for(dealt: Mapping[str, Mapping[str, bytes]], name: str) -> dict[str, bytes]:
    return {dealer: sealed[name] for dealer, sealed in dealt.items() if dealer != name}


def few_dealers(made: Federation) -> Refusals:
    """Delivers the shares of bribed sites alone, so that only their masks cover a site."""
    dealt = to_shares(made)
    digest = made.session.digest()
    shown = {
        name: messages.encode_delivered(digest, {bribed: dealt[bribed][name] for bribed in BRIBED})
        for name in honest(made)
    }
    return refused(made, Phase.MASKED, shown)


def survivors_below_the_threshold(made: Federation) -> Refusals:
    """Asks to open a sum of one honest site and the bribed ones."""
    to_masked(made)
    return refused(made, Phase.AGREE, {"site-000": survivors(made, ("site-000", *BRIBED))})


def survivors_without_the_member(made: Federation) -> Refusals:
    """Asks a site for shares of the others, and says that its own codes did not arrive."""
    to_masked(made)
    return refused(made, Phase.AGREE, {"site-000": survivors(made, list(made.members)[1:])})


def survivors_that_sent_no_shares(made: Federation) -> Refusals:
    """Names a survivor that was not a dealer."""
    dealt = to_shares(made)
    digest, everyone = made.session.digest(), list(made.members)
    for name in everyone[1:]:
        others = {dealer: sealed for dealer, sealed in _for(dealt, name).items() if dealer != "site-000"}
        made.ask(Phase.MASKED, name, messages.encode_delivered(digest, others), made.codes[name])
    return refused(made, Phase.AGREE, dict.fromkeys(everyone[1:], survivors(made, everyone)))


def too_few_signatures(made: Federation) -> Refusals:
    """Shows one signature less than the threshold."""
    to_masked(made)
    everyone = list(made.members)
    for name in everyone:
        made.ask(Phase.AGREE, name, survivors(made, everyone))
    few = signatures(made, everyone[: made.session.threshold - 1])
    return refused(made, Phase.REVEAL, dict.fromkeys(everyone, few))


def one_signature_for_all(made: Federation) -> Refusals:
    """Shows one bribed site's signature under every name."""
    to_masked(made)
    everyone = list(made.members)
    for name in everyone:
        made.ask(Phase.AGREE, name, survivors(made, everyone))
    digest = made.session.digest()
    own = messages.decode_agreed(digest, made.seen.sent[Phase.AGREE][BRIBED[0]])
    shown = messages.encode_signatures(digest, dict.fromkeys(everyone, own))
    return refused(made, Phase.REVEAL, dict.fromkeys(everyone, shown))


def keys_twice(made: Federation) -> Refusals:
    """Asks for keys a second time."""
    to_keys(made)
    return {name: refusal(lambda name=name: made.ask(Phase.KEYS, name)) for name in honest(made)}  # type: ignore[misc]


def shares_twice(made: Federation) -> Refusals:
    """Asks for shares a second time, for a smaller roster."""
    to_shares(made)
    roster = messages.decode_roster(made.session.digest(), made.seen.roster)
    smaller = messages.encode_roster(made.session.digest(), dict(list(roster.items())[1:]))
    return refused(made, Phase.SHARES, dict.fromkeys(made.members, smaller))


def masked_twice(made: Federation) -> Refusals:
    """Asks for masked codes a second time, for fewer dealers."""
    dealt = to_shares(made)
    digest = made.session.digest()
    for name in made.members:
        made.ask(Phase.MASKED, name, made.seen.delivered[name], made.codes[name])
    fewer = {
        name: messages.encode_delivered(
            digest, {dealer: sealed for dealer, sealed in _for(dealt, name).items() if dealer != BRIBED[0]}
        )
        for name in made.members
    }
    return refused(made, Phase.MASKED, fewer)


def agree_twice(made: Federation) -> Refusals:
    """Asks for a signature over a second set of survivors."""
    to_masked(made)
    everyone = list(made.members)
    for name in everyone:
        made.ask(Phase.AGREE, name, survivors(made, everyone))
    return refused(made, Phase.AGREE, dict.fromkeys(everyone[1:], survivors(made, everyone[1:])))


def both_secrets(made: Federation) -> Refusals:
    """Asks again for shares, to get the other secret of a site."""
    secure_setting.play(made)
    return refused(made, Phase.REVEAL, dict.fromkeys(made.members, made.seen.signatures))


def out_of_turn(made: Federation) -> Refusals:
    """Asks for shares of secrets before anything is masked."""
    to_shares(made)
    return refused(made, Phase.REVEAL, dict.fromkeys(made.members, b""))


def live_site_named_dropped(made: Federation) -> Refusals:
    """Says that a site whose codes it has is gone, to get its mask key."""
    to_masked(made)
    everyone, victim = list(made.members), "site-000"
    rest = everyone[1:]
    for name in rest:
        made.ask(Phase.AGREE, name, survivors(made, rest))
    found = refused(made, Phase.REVEAL, dict.fromkeys(rest, signatures(made, rest)))
    require_noise(made, victim, Secret.MASK_KEY)
    return found


def silent_site_named_survivor(made: Federation) -> Refusals:
    """Says that a silent site is in the sum, to get its self-mask."""
    to_shares(made)
    everyone, victim = list(made.members), "site-000"
    for name in everyone[1:]:
        made.ask(Phase.MASKED, name, made.seen.delivered[name], made.codes[name])
    for name in everyone[1:]:
        made.ask(Phase.AGREE, name, survivors(made, everyone))
    found = refused(made, Phase.REVEAL, dict.fromkeys(everyone[1:], signatures(made, everyone[1:])))
    require_noise(made, "site-001", Secret.SELF_MASK)
    if victim in made.seen.sent[Phase.MASKED]:
        raise AssertionError("the victim was meant to be silent")
    return found


def require_noise(made: Federation, victim: str, which: Secret) -> None:
    """Take off all masks of a site that the shares of one secret and the bribed sites' keys give.

    Raises:
        AssertionError: what is left is the site's codes.
    """
    asked, seen = made.session, made.seen
    shares = secure_setting.shares_known(made, BRIBED)[victim, which]
    secret, _ = next(iter(shamir.candidates(shares, asked.threshold)))
    roster = messages.decode_roster(asked.digest(), seen.roster)
    hashed = transcript.roster_hash(seen.roster)
    _, vector = messages.decode_masked(asked.digest(), seen.sent[Phase.MASKED][victim], 4 * asked.length)
    left = np.frombuffer(vector, masks.dtype(asked.ring_bits)).copy()
    minus: list[bytes] = []
    plus: list[bytes] = []
    if which is Secret.SELF_MASK:
        minus.append(transcript.self_mask_key(secret, hashed, victim))
    for other in roster:
        if other == victim or (which is Secret.SELF_MASK and other not in BRIBED):
            continue
        private = secret if which is Secret.MASK_KEY else private_keys(made.seed, other)[0]
        public = roster[other if which is Secret.MASK_KEY else victim].mask_key
        key = transcript.pair_mask_key(primitives.x25519(private, public), hashed, victim, other)
        (minus if victim < other else plus).append(key)
    masks.mask(left, plus, minus)
    if (masks.from_ring(left) == made.codes[victim]).any():
        raise AssertionError(f"the codes of {victim} are bare")


def fewer_than_a_site_asks_for(made: Federation) -> Refusals:
    """Opens a sum of fewer sites than one site's own min_cohort."""
    strict = secure_setting.federation(made.session, "strict", min_cohort=SITES)
    made.members["site-000"] = strict.members["site-000"]
    roster = to_roster(made)
    made.seen.roster = messages.encode_roster(made.session.digest(), dict(list(roster.items())[:-1]))
    return refused(made, Phase.SHARES, {"site-000": made.seen.roster})


def not_a_member(made: Federation) -> Refusals:
    """Asks a site to take part in a sum whose members it is not among."""
    fewer = replace(made.session, members=made.session.members[1:])
    return {"site-000": refusal(lambda: _member(fewer, "site-000"))}


def two_members_alone(made: Federation) -> Refusals:
    """Asks for a sum of two sites."""
    return {"site-000": refusal(lambda: replace(made.session, members=made.session.members[:2]))}


def look_alike_name(made: Federation) -> Refusals:
    """Names a member that differs from another by an invisible character."""
    twin = tuple(sorted((*made.session.members, "site-000\u200b")))
    return {"site-000": refusal(lambda: replace(made.session, members=twin))}


def beyond_the_assumption(made: Federation) -> Refusals:
    """Three bribed, more than assumed: two sets of survivors, signed by all bribed."""
    to_masked(made)
    everyone, digest = list(made.members), made.session.digest()
    roster = transcript.roster_hash(made.seen.roster)
    dealers = transcript.dealers_hash(roster, everyone)
    for group, names in ((everyone[:2], everyone), (everyone[2:4], everyone[1:])):
        statement = transcript.survivors_statement(roster, dealers, names)
        signed = {name: secure_setting.identity(name).sign(statement) for name in MORE_BRIBED}
        for name in group:
            answer = made.ask(Phase.AGREE, name, survivors(made, names))
            signed[name] = messages.decode_agreed(digest, answer)
        for name in group:
            made.ask(Phase.REVEAL, name, messages.encode_signatures(digest, signed))
    return {}


def _member(asked: Session, name: str) -> Member:
    return Member(asked, name, secure_setting.identity(name), secure_setting.directory(asked.members))


UNNOTICED: tuple[Attack, ...] = (
    live_site_named_dropped,
    silent_site_named_survivor,
    beyond_the_assumption,
)
"""Honest sites cannot notice these: the first two give the server vectors that a mask still covers."""

ATTACKS: tuple[Attack, ...] = (
    two_sets_of_survivors,
    two_sets_each_with_its_own_signatures,
    two_sets_of_dealers,
    two_rosters,
    other_sessions,
    swapped_key,
    swapped_transport_key,
    swapped_commitment,
    swapped_places,
    exchanged_key_places,
    invented_site,
    site_that_was_not_asked,
    site_listed_twice,
    look_alike_name,
    replayed_keys,
    replayed_roster,
    replayed_shares,
    replayed_signatures,
    low_order_key,
    unreduced_key,
    repeated_key,
    reflected_shares,
    misdirected_shares,
    shares_of_nobody,
    few_dealers,
    two_members_alone,
    not_a_member,
    roster_below_the_threshold,
    roster_without_the_member,
    survivors_below_the_threshold,
    survivors_without_the_member,
    survivors_that_sent_no_shares,
    fewer_than_a_site_asks_for,
    too_few_signatures,
    one_signature_for_all,
    keys_twice,
    shares_twice,
    masked_twice,
    agree_twice,
    both_secrets,
    out_of_turn,
    live_site_named_dropped,
    silent_site_named_survivor,
    beyond_the_assumption,
)

if __name__ == "__main__":
    sys.exit(main())

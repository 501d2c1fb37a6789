"""What a run must keep of its promise of privacy, asked before anything of it is trained.

One check before any training: of a run that starts or goes on, the arms of a comparison, the stages of
a run, its coordinator and its server. `shepherd privacy plan` shows the same accounts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shepherd import plugins
from shepherd.core import Method, Selection
from shepherd.privacy import client_level, example_level
from shepherd.privacy.client_level import ClientPrivacy
from shepherd.privacy.example_level import ExampleAccount
from shepherd.settings import RunSettings


def require_private(
    settings: RunSettings, sizes: Mapping[str, int], allowed: Collection[str] = ()
) -> tuple[ClientPrivacy | None, ExampleAccount | None]:
    """Raise SettingsError unless the noise of a run keeps what its run file promises.

    Args:
        sizes: number of examples of each client.
        allowed: as for `plugins.built`.

    Returns:
        What its rounds spend of each client's privacy, and of each example's; None for what is without noise.

    Raises:
        SettingsError: as `of_clients` and `of_examples`.
    """
    method, selection = plugins.method(settings, allowed), plugins.selection(settings, allowed)
    return (
        of_clients(settings, method, selection, len(sizes), allowed),
        of_examples(settings, method, selection, sizes),
    )


def of_clients(
    settings: RunSettings, method: Method, selection: Selection, clients: int, allowed: Collection[str] = ()
) -> ClientPrivacy | None:
    """What the planned rounds spend of each client's privacy; None if no transform adds noise.

    Raises:
        SettingsError: it is above the budget, or without bound; as `client_level.of_run`; or a budget is set
            and nothing adds noise.
    """
    found = client_level.of_run(settings, method, selection, clients, plugins.noise_of(settings, allowed))
    if found is None:
        client_level.require_noise(settings)
        return None
    found.require_bounded()
    found.require_within()
    return found


def of_examples(
    settings: RunSettings, method: Method, selection: Selection, sizes: Mapping[str, int]
) -> ExampleAccount | None:
    """What the planned visits spend of each example's privacy; None without [privacy.examples].

    Each client counts for the rounds that ask it; see `example_level.asked`.

    Raises:
        SettingsError: it is above the budget, or without bound; or as `example_level.of_run`.
    """
    if settings.privacy.examples is None:
        return None
    account = example_level.of_run(settings, sizes, example_level.asked(settings, method, selection, sizes))
    account.require_bounded()
    return account

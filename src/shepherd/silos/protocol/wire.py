"""What travels between server and site, as bytes: one safetensors file a message.

    {"__metadata__": {"shepherd": JSON}, '["delta", "q_proj.lora_A.weight"]': ..., ...} and the tensors

The JSON says what the message is, its plain fields and the tree of its tensors; a tensor's name is its path
in that tree. So nothing that arrives is ever run, and float32 comes back in the bits it had. Reading is
strict: a key missing or unknown, another type or dtype, a tensor too many, a text too long is a WireError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

from shepherd.core import Adapter, Broadcast, Failure, Payload, Update
from shepherd.core.tree import Tree, flattened, rebuilt
from shepherd.errors import WireError
from shepherd.silos.protocol import schema
from shepherd.version import version as version  # what both ends say of themselves

FORMAT = 1
HEADER = "shepherd"
MOST_HEADER = 8 * 2**20  # bytes; the names of ten thousand tensors take two million
_FAULTS = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)

SLOWEST = 125_000
"""Bytes a second of the slowest line whose messages are waited for."""

Kind = Literal["join", "train", "score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the server asks of one site."""

    kind: Kind
    run: str
    """Of the run, 16 hex digits."""
    id: str
    """From `request_id`: the same whenever the same question is asked again, and of no other one."""
    round: int
    """Rounds finished before this one."""
    deadline: float
    """Seconds from receipt in which the answer is wanted."""
    sent: float
    """The server's clock, in Unix seconds."""
    version: str
    """Of shepherd-fit at the server."""
    cohort: int
    """Clients asked this round."""
    base: str
    """The digest of the base's files, from `shepherd.model.digest`."""
    settings: Mapping[str, Any]
    """The run file's tables that travel."""
    broadcast: Broadcast | None
    """None in a request to join, and in no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A site that has its base and its data ready."""

    client: str
    examples: int
    """That it trains on."""
    version: str
    """Of shepherd-fit at the site."""
    min_cohort: int = 1
    """Usable updates that a mean with this site's part in it must be made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the broadcast adapter loses on a site's own held-out examples."""

    client: str
    round: int
    categories: Mapping[str, tuple[float, int]]
    """Category -> (summed loss in nats, response tokens)."""


Reply: TypeAlias = Update | Failure | Joined | Scores


def request_id(request: Request) -> str:
    """32 hex digits of all that the answer depends on; the same for what is equal to the bit, in any process.

    When and by which version it is asked, of how many others, and how long it may take are left out: who
    asks again after a crash asks the same question.
    """
    tensors: dict[str, NDArray[Any]] = {}
    broadcast = request.broadcast
    sent = (broadcast.round, broadcast.seed, flattened(_parts(broadcast), tensors)) if broadcast else None
    what = (request.run, request.kind, request.round, request.base, request.settings, sent)
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=_number_of).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()[:32]


# writing ---------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """The request as bytes; `decode_request` gives an equal one back."""
    sent = request.broadcast
    plain = {name: getattr(request, name) for name in schema.REQUEST}
    plain["broadcast"] = {"round": sent.round, "seed": sent.seed} if sent else None
    return _written("request", plain, _parts(sent) if sent else {}, request.version)


def encode_reply(reply: Reply) -> bytes:
    """The reply as bytes; a Failure's reason goes as one line, as `fields.sentence` makes it."""
    match reply:
        case Update():
            parts = {"delta": reply.delta, "extra": reply.extra}
            return _written("update", {name: getattr(reply, name) for name in schema.UPDATE}, parts)
        case Failure():
            return _written("failure", {"client": reply.client, "reason": schema.sentence(reply.reason)})
        case Joined():
            return _written(
                "joined", {name: getattr(reply, name) for name in schema.JOINED}, at=reply.version
            )
        case Scores():
            return _written("scores", {name: getattr(reply, name) for name in schema.SCORES})


def _parts(broadcast: Broadcast) -> dict[str, Tree]:
    return {"adapter": broadcast.adapter, "extra": broadcast.extra, "transforms": broadcast.transforms}


def _written(
    what: str, plain: Mapping[str, Any], parts: Mapping[str, Tree] = {}, at: str | None = None
) -> bytes:
    tensors: dict[str, NDArray[Any]] = {}
    head = {
        "format": FORMAT,
        "version": version() if at is None else at,
        "what": what,
        "plain": plain,
        "tensors": flattened(parts, tensors),
    }
    return bytes(bytes_of(tensors, metadata={HEADER: json.dumps(head, default=_number_of)}))


def _number_of(scalar: Any) -> Any:
    """numpy's scalars as JSON's numbers."""
    return scalar.item()


# reading ---------------------------------------------------------------------------------------------------


def decode_request(data: bytes) -> Request:
    """The request that these bytes are.

    Raises:
        WireError: they are no request of this format.
    """
    with _faults_told():
        head, tree = _read(data)
        if head["what"] != "request":
            raise WireError(f"the message is no request but a {head['what']!r:.40}; check what sends it")
        plain = dict(head["plain"])
        sent = plain.pop("broadcast")
        request = Request(
            **schema.read(plain, schema.REQUEST),
            version=head["version"],
            broadcast=None if sent is None else _broadcast(sent, tree),
        )
        if (sent is None) != (request.kind == "join") or (sent is None and tree):
            raise WireError(f"a request to {request.kind} has a broadcast, or has none; send it as it should")
        return request


def decode_reply(data: bytes, *, most_bytes: int | None = None) -> Reply:
    """The reply that these bytes are. Its numbers may be NaN: law 6 is for `rounds.check`.

    Args:
        most_bytes: a longer message is refused unread.

    Raises:
        WireError: they are too many, or no reply of this format.
    """
    if most_bytes is not None and len(data) > most_bytes:
        raise WireError(f"the reply has {len(data)} bytes and at most {most_bytes} are taken; send fewer")
    with _faults_told():
        head, tree = _read(data)
        what, plain = head["what"], head["plain"]
        if what not in ("update", "failure", "joined", "scores"):
            raise WireError(f"the message is no reply but a {what!r:.40}; check what answers there")
        if what == "update":
            schema.require_keys(tree, ("delta", "extra"), "the update's tensors")
            delta, extra = _payload(tree["delta"]), _payload(tree["extra"])
            return Update(delta=delta, extra=extra, **schema.read(plain, schema.UPDATE))
        schema.require_keys(tree, (), "the tensors")
        match what:
            case "failure":
                return Failure(**schema.read(plain, schema.FAILURE))
            case "joined":
                return Joined(**schema.read(plain, schema.JOINED), version=head["version"])
            case _:
                return Scores(**schema.read(plain, schema.SCORES))


@contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise WireError(
            f"the message cannot be read ({type(error).__name__}): it was cut or changed on its way, or"
            " another version wrote it; send it anew, with one version of shepherd-fit at both ends"
        ) from error


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, Tree]]:
    """The header, and the tree of its tensors: each array has its place and each place its array."""
    head = _head(data)
    tensors = tensors_from(data)
    for array in tensors.values():
        array.flags.writeable = False  # so that an Adapter need not copy
    _require_names(schema.mapping(head["tensors"]))
    try:
        tree: dict[str, Tree] = rebuilt(head["tensors"], tensors)
    except KeyError as error:
        raise WireError(
            f"tensor {error.args[0]:.200} is missing from the message; send what its header lists"
        ) from error
    for name in tensors:
        name = schema.sentence(name)
        raise WireError(f"tensor {name:.200} has no place in the message's header; send what it lists")
    return head, tree


def _head(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= 2 * MOST_HEADER:
        raise WireError(f"the message's header has {size} bytes; it is no message of shepherd-fit's")
    text = json.loads(data[8 : 8 + size])["__metadata__"][HEADER]
    if len(text) > MOST_HEADER:
        raise WireError(f"the message's header has {len(text)} characters, at most {MOST_HEADER} are taken")
    head = schema.mapping(json.loads(text, object_pairs_hook=_once))
    writer = schema.label(head["version"])
    if head["format"] != FORMAT or isinstance(head["format"], bool):
        raise WireError(
            f"the message has format {head['format']!r:.20} of shepherd-fit {writer}, and shepherd-fit"
            f" {version()} here reads format {FORMAT}; install one version at both ends"
        )
    schema.require_keys(head, ("format", "version", "what", "plain", "tensors"), "the header")
    json.dumps(head, ensure_ascii=False).encode()  # a lone surrogate would fail whoever prints it
    return head


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise WireError("a key stands twice in the message's header; write each once")
    return table


def _require_names(shape: Any) -> None:
    """Names that errors, and so logs, may repeat."""
    for part in shape.values() if isinstance(shape, dict) else shape if isinstance(shape, list) else ():
        _require_names(part)
    for name in shape if isinstance(shape, dict) else ():
        try:
            schema.label(name)
        except ValueError as error:
            raise WireError(
                f"the name of a tensor {error}; use the names of the base's own layers"
            ) from error


def _broadcast(sent: Any, tree: dict[str, Tree]) -> Broadcast:
    schema.require_keys(tree, ("adapter", "extra", "transforms"), "the broadcast's tensors")
    if not isinstance(tree["transforms"], tuple):
        raise WireError("the broadcast's transforms are no list of states; send one for each transform")
    return Broadcast(
        **schema.read(sent, {"round": schema.whole, "seed": schema.whole}),
        adapter=_adapter(tree["adapter"]),
        extra=_payload(tree["extra"]),
        transforms=tree["transforms"],
    )


def _payload(part: Tree) -> Payload:
    for name, array in schema.mapping(part).items():
        if not isinstance(array, np.ndarray):
            raise WireError(f"tensor {name:.200} is a table of tensors; send one tensor under each name")
    return Payload(part)


def _adapter(part: Tree) -> Adapter:
    for name, array in schema.mapping(part).items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise WireError(f"tensor {name:.200} is not float32; send adapters in float32")
    return Adapter(part)

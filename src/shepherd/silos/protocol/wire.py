"""Messages between server and site as bytes: each is one safetensors file.

    {"__metadata__": {"shepherd": JSON}, '["delta", "q_proj.lora_A.weight"]': ..., ...} and the tensors

The JSON holds the kind of message, its plain fields and the tree of its tensors; a tensor's name is its path
in that tree. So nothing that arrives is ever executed, and float32 values keep their bits. Reading is strict:
a missing or unknown key, another type or dtype, an extra tensor or a text that is too long is a WireError.
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
from shepherd.version import version as version  # each message carries its writer's

FORMAT = 1
HEADER = "shepherd"
MAX_HEADER_BYTES = 8 * 2**20  # the names of ten thousand tensors take two million bytes
_DECODING_ERRORS = (
    SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)

MIN_LINK_BYTES_PER_S = 125_000
"""Slowest link that timeouts allow for (1 Mbit/s)."""

Kind = Literal["join", "train", "score"]
Phase = Literal["keys", "shares", "masked", "agree", "reveal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the server to a site."""

    kind: Kind
    run: str
    """The run's id, 16 hex digits."""
    id: str
    """The `request_id`: equal for equal requests, different for all others."""
    round: int
    """Rounds finished before this one."""
    deadline: float
    """Seconds from receipt until the reply is due."""
    sent: float
    """Time of sending by the server's clock, in Unix seconds."""
    version: str
    """Version of shepherd-fit at the server."""
    cohort: int
    """Number of clients asked in this round."""
    base: str
    """Digest of the base's files, from `shepherd.model.digest`."""
    settings: Mapping[str, Any]
    """Tables of the run file, from `jobspec.settings_for_site`."""
    broadcast: Broadcast | None
    """None in a request to join, set in every other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRequest:
    """One phase of a secure sum over the updates that answer one request to train; see `silos.secure`."""

    kind: Phase
    run: str
    """The run's id."""
    id: str
    """The `request_id` of the request to train."""
    round: int
    """Rounds finished before this one."""
    attempt: str
    """32 hex digits, drawn by the server for each attempt at the sum."""
    members: tuple[str, ...]
    """The round's cohort, sorted."""
    length: int
    """Number of whole numbers in each site's update."""
    ring_bits: int
    """The sum is modulo 2 to this power."""
    deadline: float
    """Seconds from receipt until the reply is due."""
    sent: float
    """Time of sending by the server's clock, in Unix seconds."""
    version: str
    """Version of shepherd-fit at the server."""
    content: bytes
    """The protocol's own message, which the protocol checks; empty in the first phase."""


Asked: TypeAlias = Request | SumRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Reply of a site that has loaded its base and its data."""

    client: str
    examples: int
    """Number of examples that it trains on."""
    version: str
    """Version of shepherd-fit at the site."""
    min_cohort: int = 1
    """Fewest usable updates in a mean that includes this site's."""
    rank: int | None = None
    """How many ranks of the adapter it trains; None for as many as the run file asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Loss of the broadcast adapter on a site's own held-out examples."""

    client: str
    round: int
    categories: Mapping[str, tuple[float, int]]
    """Category -> (summed loss in nats, response tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Reply of a site that has trained and keeps its update, to send it under masks."""

    client: str
    round: int
    length: int
    """Number of whole numbers in its update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumAnswer:
    """Reply of a site to one phase of a secure sum."""

    client: str
    round: int
    kind: Phase
    attempt: str
    content: bytes
    """The protocol's own message."""


Reply: TypeAlias = Update | Failure | Ready | Scores | Trained | SumAnswer


def request_id(request: Request) -> str:
    """SHA-256 of everything that the reply depends on: 64 hex digits, equal in any process for equal bits.

    The time of sending, the server's version, the cohort's size and the deadline are left out: a request
    that is repeated after a crash has the same id.
    """
    tensors: dict[str, NDArray[Any]] = {}
    broadcast = request.broadcast
    sent = (
        (broadcast.round, broadcast.seed, flattened(_broadcast_parts(broadcast), tensors))
        if broadcast
        else None
    )
    what = (request.run, request.kind, request.round, request.base, request.settings, sent)
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=_to_python_number).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


# writing ---------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """The request as bytes; `decode_request` returns an equal one."""
    sent = request.broadcast
    plain = {name: getattr(request, name) for name in schema.REQUEST}
    plain["broadcast"] = {"round": sent.round, "seed": sent.seed} if sent else None
    return _message_bytes("request", plain, _broadcast_parts(sent) if sent else {}, request.version)


def encode_sum_request(request: SumRequest) -> bytes:
    """The request as bytes; `decode_asked` returns an equal one."""
    plain = {name: getattr(request, name) for name in schema.SUM_REQUEST}
    return _message_bytes("sum", plain, {"content": _as_array(request.content)}, request.version)


def encode_reply(reply: Reply) -> bytes:
    """The reply as bytes; a Failure's reason becomes one line (`schema.sentence`)."""
    match reply:
        case Update():
            parts = {"delta": reply.delta, "extra": reply.extra}
            return _message_bytes("update", {name: getattr(reply, name) for name in schema.UPDATE}, parts)
        case Failure():
            return _message_bytes(
                "failure", {"client": reply.client, "reason": schema.sentence(reply.reason)}
            )
        case Ready():
            return _message_bytes(
                "joined", {name: getattr(reply, name) for name in schema.READY}, at=reply.version
            )
        case Scores():
            return _message_bytes("scores", {name: getattr(reply, name) for name in schema.SCORES})
        case Trained():
            return _message_bytes("trained", {name: getattr(reply, name) for name in schema.TRAINED})
        case SumAnswer():
            plain = {name: getattr(reply, name) for name in schema.SUM_ANSWER}
            return _message_bytes("summand", plain, {"content": _as_array(reply.content)})


def _as_array(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def _broadcast_parts(broadcast: Broadcast) -> dict[str, Tree]:
    return {"adapter": broadcast.adapter, "extra": broadcast.extra, "transforms": broadcast.transforms}


def _message_bytes(
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
    return bytes(bytes_of(tensors, metadata={HEADER: json.dumps(head, default=_to_python_number)}))


def _to_python_number(scalar: Any) -> Any:
    """A numpy scalar as a JSON number."""
    return scalar.item()


# reading ---------------------------------------------------------------------------------------------------


def decode_asked(data: bytes) -> Asked:
    """Decode a request, or one phase of a secure sum.

    Raises:
        WireError: the bytes are neither in this format.
    """
    with _decoding_errors_as_wire_error():
        is_sum = _head(data)["what"] == "sum"
    return decode_sum_request(data) if is_sum else decode_request(data)


def decode_sum_request(data: bytes) -> SumRequest:
    """Decode one phase of a secure sum.

    Raises:
        WireError: the bytes are not one in this format.
    """
    with _decoding_errors_as_wire_error():
        head, tree = _read(data)
        if head["what"] != "sum":
            raise WireError(f"the message is not a sum but {head['what']!r:.40}; check what sends it")
        plain = schema.read(head["plain"], schema.SUM_REQUEST)
        return SumRequest(**plain, version=head["version"], content=_content(tree))


def decode_request(data: bytes) -> Request:
    """Decode a request.

    Raises:
        WireError: the bytes are not a request in this format.
    """
    with _decoding_errors_as_wire_error():
        head, tree = _read(data)
        if head["what"] != "request":
            raise WireError(f"the message is not a request but {head['what']!r:.40}; check what sends it")
        plain = dict(head["plain"])
        sent = plain.pop("broadcast")
        request = Request(
            **schema.read(plain, schema.REQUEST),
            version=head["version"],
            broadcast=None if sent is None else _broadcast(sent, tree),
        )
        if (sent is None) != (request.kind == "join") or (sent is None and tree):
            raise WireError(
                f"a request to {request.kind} must {'not ' * (request.kind == 'join')}have a broadcast; use"
                " one version of shepherd-fit at both ends"
            )
        return request


def decode_reply(data: bytes, *, max_bytes: int | None = None) -> Reply:
    """Decode a reply. Its numbers may be NaN: `rounds.acceptance` checks an update (law 6).

    Args:
        max_bytes: a longer message is refused before it is read.

    Raises:
        WireError: the message is too long, or not a reply in this format.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise WireError(f"the reply has {len(data)} bytes, and the limit is {max_bytes}; send fewer")
    with _decoding_errors_as_wire_error():
        head, tree = _read(data)
        what, plain = head["what"], head["plain"]
        if what not in ("update", "failure", "joined", "scores", "trained", "summand"):
            raise WireError(f"the message is not a reply but {what!r:.40}; check what sends it")
        if what == "update":
            schema.require_keys(tree, ("delta", "extra"), "the update's tensors")
            delta, extra = _payload(tree["delta"]), _payload(tree["extra"])
            return Update(delta=delta, extra=extra, **schema.read(plain, schema.UPDATE))
        if what == "summand":
            return SumAnswer(**schema.read(plain, schema.SUM_ANSWER), content=_content(tree))
        schema.require_keys(tree, (), "the tensors")
        match what:
            case "failure":
                return Failure(**schema.read(plain, schema.FAILURE))
            case "joined":
                return Ready(**schema.read(plain, schema.READY), version=head["version"])
            case "trained":
                return Trained(**schema.read(plain, schema.TRAINED))
            case _:
                return Scores(**schema.read(plain, schema.SCORES))


@contextmanager
def _decoding_errors_as_wire_error() -> Iterator[None]:
    try:
        yield
    except _DECODING_ERRORS as error:
        raise WireError(
            f"the message cannot be read ({type(error).__name__}): it was cut or changed on the way, or"
            " another version wrote it; use one version of shepherd-fit at both ends, and send it again"
        ) from error


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, Tree]]:
    """The header and the tree of tensors; arrays and places in the tree match one to one."""
    head = _head(data)
    tensors = tensors_from(data)
    for array in tensors.values():
        array.flags.writeable = False  # so that an Adapter need not copy
    _require_names(schema.mapping(head["tensors"]))
    try:
        tree: dict[str, Tree] = rebuilt(head["tensors"], tensors)
    except KeyError as error:
        raise WireError(
            f"tensor {error.args[0]:.200} is missing from the message; send every tensor that its header"
            " lists"
        ) from error
    for name in tensors:
        name = schema.sentence(name)
        raise WireError(f"tensor {name:.200} is not listed in the message's header; leave it out")
    return head, tree


def _head(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= 2 * MAX_HEADER_BYTES:
        raise WireError(
            f"the message's header has {size} bytes, so shepherd-fit did not write it; check what sends it"
        )
    text = json.loads(data[8 : 8 + size])["__metadata__"][HEADER]
    if len(text) > MAX_HEADER_BYTES:
        raise WireError(
            f"the message's header has {len(text)} characters, and the limit is {MAX_HEADER_BYTES}"
        )
    head = schema.mapping(json.loads(text, object_pairs_hook=_refuse_repeated_keys))
    writer = schema.label(head["version"])
    if head["format"] != FORMAT or isinstance(head["format"], bool):
        raise WireError(
            f"the message has format {head['format']!r:.20} of shepherd-fit {writer}, and shepherd-fit"
            f" {version()} here reads format {FORMAT}; install one version at both ends"
        )
    schema.require_keys(head, ("format", "version", "what", "plain", "tensors"), "the header")
    json.dumps(head, ensure_ascii=False).encode()  # a lone surrogate would fail where it is printed
    return head


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise WireError("a key is repeated in the message's header; write each key once")
    return table


def _require_names(shape: Any) -> None:
    """Raise WireError unless every name in the tree is safe to repeat in errors and logs."""
    for part in shape.values() if isinstance(shape, dict) else shape if isinstance(shape, list) else ():
        _require_names(part)
    for name in shape if isinstance(shape, dict) else ():
        try:
            schema.label(name)
        except ValueError as error:
            raise WireError(
                f"the name of a tensor {error}; use the names of the base's own layers"
            ) from error


def _content(tree: dict[str, Tree]) -> bytes:
    schema.require_keys(tree, ("content",), "the tensors")
    content = tree["content"]
    if not isinstance(content, np.ndarray) or content.dtype != np.uint8 or content.ndim != 1:
        raise WireError("the content of a secure sum's message is not a row of bytes; check what sends it")
    return content.tobytes()


def _broadcast(sent: Any, tree: dict[str, Tree]) -> Broadcast:
    schema.require_keys(tree, ("adapter", "extra", "transforms"), "the broadcast's tensors")
    if not isinstance(tree["transforms"], tuple):
        raise WireError("the broadcast's transforms are not a list; send one state for each transform")
    return Broadcast(
        **schema.read(sent, {"round": schema.whole_number, "seed": schema.whole_number}),
        adapter=_adapter(tree["adapter"]),
        extra=_payload(tree["extra"]),
        transforms=tree["transforms"],
    )


def _payload(part: Tree) -> Payload:
    for name, array in schema.mapping(part).items():
        if not isinstance(array, np.ndarray):
            raise WireError(f"{name:.200} is a table of tensors; send one tensor under each name")
    return Payload(part)


def _adapter(part: Tree) -> Adapter:
    for name, array in schema.mapping(part).items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise WireError(f"tensor {name:.200} is not float32; send adapters in float32")
    return Adapter(part)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from shepherd.errors import WireError
from shepherd.silos.flare import message


@given(st.binary(min_size=1, max_size=50), st.integers(1, 20))
def test_every_byte_comes_back_in_its_place(sent: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message, "PIECE_BYTES", piece)
        model = message.wrapped(sent)
        assert [len(array) for array in model.params.values()][:-1] == [piece] * ((len(sent) - 1) // piece)
        # as FLARE may hand them over: in any order, and not in one block
        model.params = {name: np.repeat(model.params[name], 2)[::2] for name in reversed(model.params)}
        assert message.unwrapped(model) == sent


def test_nothing_is_no_message_of_ours_and_comes_back_as_it_is() -> None:
    assert message.unwrapped(message.wrapped(b"")) == b""


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"message": np.zeros(3, np.uint8)},
        {"0": b"bytes"},
        {"0": np.zeros(3, np.int8)},
        {"0": np.zeros((1, 3), np.uint8)},
        {"0": np.zeros(3, np.uint8), "7": np.zeros(3, np.uint8)},
        {str(message.PIECE_BYTES): np.zeros(3, np.uint8)},
        [np.zeros(3, np.uint8)],
    ],
)
def test_what_is_not_ours_is_refused(params: object) -> None:
    model = FLModel(params_type=ParamsType.FULL, params={"0": np.zeros(1, np.uint8)})
    model.params = params
    with pytest.raises(WireError, match="was not made by Shepherd"):
        message.unwrapped(model)

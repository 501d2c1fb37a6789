"""What every file of `shepherd/model/exporters` keeps to."""

import numpy as np
import pytest
from tests.contracts.filling import built
from tests.model import bases

from benchmarks import gguf_bases
from shepherd import plugins
from shepherd.core import Adapter
from shepherd.data.template import Template
from shepherd.model import exporters
from shepherd.model.exporting import EXPORTER, Trained

pytestmark = pytest.mark.parametrize("name", plugins.names(exporters))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A base whose tokenizer every format can hold."""
    return bases.load(gguf_bases.save(gguf_bases.CONFIGS["llama"], tmp_path_factory.mktemp("llama")))


@pytest.fixture
def trained(llama):
    rng = np.random.default_rng(0)
    adapter = Adapter({name: rng.normal(size=shape) for name, shape in llama.shapes.items()})
    stop = [llama.tokenizer.eos_token_id]
    return Trained(base=llama, adapter=adapter, stop=stop, template=Template("alpaca"))


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_it_writes_the_same_files_each_time_for_their_owner_alone(name, trained, tmp_path):
    before = {tensor: values.copy() for tensor, values in trained.adapter.items()}
    for place in ("one", "two"):
        built(EXPORTER, name).write(tmp_path / place, trained)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert any(file.endswith((".safetensors", ".gguf")) for file in one)
    assert all(not (tmp_path / "one" / file).stat().st_mode & 0o077 for file in one)
    for tensor, values in before.items():
        np.testing.assert_array_equal(trained.adapter[tensor], values)
    said = built(EXPORTER, name).serve(tmp_path / "one", trained)
    assert str(tmp_path / "one") in said

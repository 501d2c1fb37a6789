"""Tokenizers of every kind that a template meets."""

import pytest

from tests.data.kinds import made, shared


@pytest.fixture(scope="session")
def neox():
    """Byte-level BPE without BOS, as GPT-NeoX and Pythia have it."""
    return made()


@pytest.fixture(scope="session")
def novella():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared("models", "novella-8m"))


@pytest.fixture(scope="session")
def llama2():
    pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    from transformers import LlamaTokenizerFast

    return LlamaTokenizerFast.from_pretrained(shared("models", "llama2-tokenizer"))


@pytest.fixture(params=["neox", "bos", "bos and eos", "merging", "metaspace", "novella", "llama2"])
def tokenizer(request):
    """One after another; `merging` has tokens such as ":\\nHeron" that lie over the border."""
    match request.param:
        case "bos":
            return made(ends=("<s>", ""))
        case "bos and eos":
            return made(ends=("<s>", "<|endoftext|>"))
        case "merging":
            return made(split=False, merges=900)
        case "metaspace":
            return made(split=False, first="always", ends=("<s>", ""))
        case name:
            return request.getfixturevalue(name)

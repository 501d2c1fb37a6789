"""The judge against `transformers serve`: a real model behind a server that is not ours."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shepherd.judge import judging
from tests.judge.conftest import table
from tests.judge.test_judging import BASE, MINE, asked

SERVE = "from transformers.cli.transformers import main; main()"
PATIENCE = 120
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "Judge:", "VERDICT:", "first")
NEXT = {"Judge:": "VERDICT:", "VERDICT:": "first", "first": "</s>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that says VERDICT: first to whatever it is asked: each word's logits are the next word's."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("judge")
    size = len(WORDS)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=size,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, 8))
        model.lm_head.weight.zero_()
        for word, following in NEXT.items():
            model.lm_head.weight[WORDS.index(following), WORDS.index(word)] = 10.0
    model.save_pretrained(path)
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} Judge:"
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint's address."""
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason="transformers serve needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-c", SERVE, "serve", str(folder), *options]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        ) as process,
    ):
        try:
            _wait(process, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


def test_its_verdicts_are_read_counted_and_kept(served: str, folder: Path, tmp_path: Path) -> None:
    settings = table(served, model=str(folder), concurrency=2, timeout=PATIENCE)
    result = judging.judge(MINE, BASE, asked(6), settings, tmp_path, lambda _: None)
    assert (result.calls, result.unreadable, result.left) == (10, 0, 0)
    assert [verdict.result for verdict in result.preferred] == [0.5] * 6  # whatever stands first
    assert result.prompt_tokens > 10 * 100
    assert 10 * 2 <= result.completion_tokens <= 10 * 3
    again = judging.judge(MINE, BASE, asked(6), settings, tmp_path, lambda _: None)
    assert (again.new_calls, again.row()) == (0, result.row())

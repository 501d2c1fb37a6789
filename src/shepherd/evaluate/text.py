"""Compare free text with a reference answer, by torchmetrics.

Exact match and F1 are SQuAD's (arXiv 1606.05250): lower case, without punctuation (of any script) and English
articles. ROUGE-L is the F-measure of the longest common subsequence (Lin, 2004), without stemming. In scripts
without spaces between words, each character counts as a word (`scripts.py`), as MLQA (arXiv 1910.07475)
counts Chinese.
"""

from __future__ import annotations

from torchmetrics.functional.text import rouge_score, squad

from shepherd.evaluate.scripts import spaced


def exact(answer: str, reference: str) -> float:
    """Exact match: 1 if both are the same text, else 0.

    >>> exact("The red fox.", "a red fox")
    1.0
    """
    return _squad(answer, reference)["exact_match"]


def f1(answer: str, reference: str) -> float:
    """Token F1: the harmonic mean of precision and recall of the words, from 0 to 1.

    >>> f1("The red fox.", "a red fox")
    1.0
    """
    return _squad(answer, reference)["f1"]


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of words, from 0 to 1.

    >>> round(rouge_l("The red fox.", "a red fox"), 3)
    0.667
    """
    found = rouge_score(
        answer,
        reference,
        rouge_keys="rougeL",
        normalizer=spaced,  # its own keeps a-z and 0-9 only
        tokenizer=str.split,
    )
    return float(found["rougeL_fmeasure"])


def _squad(answer: str, reference: str) -> dict[str, float]:
    found = squad(
        [{"prediction_text": spaced(answer, keep=True), "id": "0"}],
        [{"answers": {"answer_start": [0], "text": [spaced(reference, keep=True)]}, "id": "0"}],
    )
    return {name: float(percent) / 100 for name, percent in found.items()}

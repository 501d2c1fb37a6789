"""Compare free text with a reference answer, by torchmetrics.

Exact match and F1 are SQuAD's (arXiv 1606.05250): lower case, without punctuation and articles. ROUGE-L is
the F-measure of the longest common subsequence (Lin, 2004), without stemming.
"""

from __future__ import annotations

import re

from torchmetrics.functional.text import rouge_score, squad


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
        normalizer=lambda text: " ".join(re.findall(r"\w+", text.lower())),  # its own keeps a-z and 0-9 only
        tokenizer=str.split,
    )
    return float(found["rougeL_fmeasure"])


def _squad(answer: str, reference: str) -> dict[str, float]:
    found = squad(
        [{"prediction_text": answer, "id": "0"}],
        [{"answers": {"answer_start": [0], "text": [reference]}, "id": "0"}],
    )
    return {name: float(percent) / 100 for name, percent in found.items()}

"""Free text against a reference answer: exact match, token F1 and ROUGE-L, by torchmetrics.

Exact match and F1 are SQuAD's (arXiv 1606.05250): lower case, without punctuation and articles. ROUGE-L is
the F-measure of the longest common subsequence (Lin, 2004), without stemming.
"""

from __future__ import annotations

import re

from torchmetrics.functional.text import rouge_score, squad


def against(answer: str, reference: str) -> dict[str, float]:
    """`exact`, `f1` and `rouge_l`, each from 0 to 1.

    >>> found = against("The red fox.", "a red fox")
    >>> found["exact"], found["f1"], round(found["rouge_l"], 3)
    (1.0, 1.0, 0.667)
    """
    found = squad(
        [{"prediction_text": answer, "id": "0"}],
        [{"answers": {"answer_start": [0], "text": [reference]}, "id": "0"}],
    )
    rouge = rouge_score(
        answer,
        reference,
        rouge_keys="rougeL",
        normalizer=lambda text: " ".join(re.findall(r"\w+", text.lower())),  # its own keeps a-z and 0-9 only
        tokenizer=str.split,
    )
    return {
        "exact": float(found["exact_match"]) / 100,
        "f1": float(found["f1"]) / 100,
        "rouge_l": float(rouge["rougeL_fmeasure"]),
    }

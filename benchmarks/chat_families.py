"""Chat templates in the conventions of known families, written for these tests: none is a vendor's file.

Where a template says {% generation %}, the model writes: the answer, what stands before it that the
generation prompt does not write, and its end of turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

A, Z = "{% generation %}", "{% endgeneration %}"
SAID, TRIMMED = "{{ m.content }}", "{{ m.content | trim }}"
NL = "{{ '\\n' }}"  # jinja takes a plain line break after a block away


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A convention, its tokens, and which chats it cannot say, with a word of the reason."""

    name: str
    source: str
    special: Sequence[str]
    eos: str
    plain: Sequence[str] = ()
    """Added tokens that are not marked special."""
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    adds_eos: bool = False
    """It writes no end of turn after the last answer."""
    prompt_adds: bool = False
    """Its generation prompt writes more than an answered chat has, and is what the model is fed."""
    own_thought: bool = False
    """Its generation prompt begins a thought, and an answered chat has none: a response brings its own."""
    marked: bool = False
    """Its {% generation %} is left in."""


def spoken(user: str, assistant: str, ask: str, system: str = "", *, first: str = "", last: str = "") -> str:
    """A loop over the turns; `ask` is the generation prompt."""
    return (
        f"{first}{{% for m in messages %}}{{% if m.role == 'system' %}}{system}"
        f"{{% elif m.role == 'user' %}}{user}"
        f"{{% else %}}{assistant}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{ask}{{% else %}}{last}{{% endif %}}"
    )


def chatml(before: str = "", ask: str = "", first: str = "") -> str:
    """ChatML, with `before` each answer and after `ask`."""
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    return spoken(
        turn,
        f"<|im_start|>assistant\n{before}<|im_end|>{Z}{NL}",
        f"<|im_start|>assistant\n{ask}",
        turn,
        first=first,
    )


def thoughts(kept: str, bare: str, when: str = "loop.last") -> str:
    """An answer taken apart: `r` is its thought and `c` the rest; `kept` where `when`, else `bare`."""
    return (
        "{% set r, c = '', m.content %}{% if '</think>' in c %}"
        "{% set r = c.split('</think>')[0].split('<think>')[-1].strip() %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        f"{{% if {when} %}}{kept}{{% else %}}{bare}{{% endif %}}"
    )


def no_system(why: str) -> str:
    return "{{ raise_exception('" + why + "') }}"


ML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
UNLESS_SYSTEM, SYSTEM = "{% if messages[0].role != 'system' %}", "{% if messages[0].role == 'system' %}"
DEFAULT = UNLESS_SYSTEM + "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
PART = "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
SEVERAL = ("three exchanges", "same answer", "three thoughts")
ONES = (
    "one exchange", "system", "Unicode and CRLF", "spaces", "context", "code", "I", "k", "line breaks",
    "a user's </think>",
)  # fmt: skip
LEFT_OUT = "leaves out or rewrites response"
OPTION = "set data.template_options.enable_thinking"
BEGIN = "begin each response with that text"
ASKS = {name: "leaves that out once later turns follow" for name in SEVERAL}
LLAMA3 = "<|start_header_id|>{0}<|end_header_id|>\n\n"
TURN = LLAMA3.format("{{ m.role }}") + TRIMMED + "<|eot_id|>"
ANSWER3 = LLAMA3.format("assistant") + A + TRIMMED + "<|eot_id|>" + Z
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DATE = "Today Date: {{ strftime_now('%d %b %Y') }}\n\n"
INST = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
ON_LAST = "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
DROPS = {"system": "drops the system text"}
SEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
COHERE = (
    "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
COHERE_TURN = "<|START_OF_TURN_TOKEN|><|{0}_TOKEN|>{{{{ m.content }}}}<|END_OF_TURN_TOKEN|>"
QWEN3 = chatml(
    A + thoughts("<think>\n{{ r }}\n</think>\n\n{{ c }}", "{{ c }}"),
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
QWEN35 = chatml(
    thoughts("<think>\n" + A + "{{ r }}\n</think>\n\n{{ c }}", A + "{{ c }}"),
    "<think>\n{% if enable_thinking is defined and not enable_thinking %}" + NL + "</think>\n\n{% endif %}",
)
# with thoughts turned off the prompt closes the thought: the model writes the answer alone
QWEN35_OFF = QWEN35.replace("<think>\n" + A + "{{ r }}\n</think>\n\n", "<think>\n{{ r }}\n</think>\n\n" + A)
NEMOTRON = chatml(
    thoughts("<think>" + A + "{{ r }}</think>{{ c }}", "<think>" + A + "</think>{{ c }}"),
    "<think>{% if enable_thinking is defined and not enable_thinking %}</think>{% else %}"
    + NL
    + "{% endif %}",
)
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|startoftext|>")

FAMILIES = (
    Family(name="ChatML", source=chatml(A + SAID), special=ML, eos="<|im_end|>"),
    Family(
        name="ChatML, default system", source=chatml(A + SAID, first=DEFAULT), special=ML, eos="<|im_end|>"
    ),
    Family(name="ChatML, another EOS", source=chatml(A + SAID), special=ML, eos="<|endoftext|>"),
    Family(
        name="ChatML, tokens not special",
        source=chatml(A + SAID),
        special=ML[2:],
        plain=ML[:2],
        eos="<|endoftext|>",
    ),
    Family(name="ChatML, marked", source=chatml(A + SAID), special=ML, eos="<|im_end|>", marked=True),
    Family(
        name="Llama 2",
        source=spoken(
            "<s>[INST] {% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>\n"
            "{{ messages[0].content }}"
            "\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]",
            f"{A} {TRIMMED} </s>{Z}",
            "",
        ),
        special=("<s>", "</s>"),
        eos="</s>",
    ),
    Family(
        name="Llama 3",
        source="<|begin_of_text|>" + spoken(TURN, ANSWER3, LLAMA3.format("assistant"), TURN),
        special=LLAMA3_TOKENS,
        eos="<|eot_id|>",
    ),
    Family(
        name="Llama 3.2, a date",
        source="<|begin_of_text|>"
        + LLAMA3.format("system")
        + "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        + "Today Date: {{ date_string }}\n\n"
        + SYSTEM
        + "{{ messages[0].content }}{% endif %}"
        + "<|eot_id|>"
        + spoken(TURN, ANSWER3, LLAMA3.format("assistant")),
        special=LLAMA3_TOKENS,
        eos="<|eot_id|>",
    ),
    Family(
        name="Gemma 2",
        source="<bos>"
        + spoken(
            f"<start_of_turn>user\n{TRIMMED}<end_of_turn>\n",
            f"<start_of_turn>model\n{A}{TRIMMED}<end_of_turn>{Z}{NL}",
            "<start_of_turn>model\n",
            no_system("System role not supported"),
        ),
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        refused={"system": "System role not supported"},
    ),
    Family(
        name="Gemma 3",
        source="<bos>"
        + spoken(
            "<start_of_turn>user\n{% if loop.index0 == 1 and messages[0].role == 'system' %}"
            "{{ messages[0].content }}\n\n{% endif %}"
            "{% if m.content is string %}{{ m.content | trim }}{% else %}"
            "{{ m.content[0].text | trim }}{% endif %}"
            "<end_of_turn>\n",
            f"<start_of_turn>model\n{A}{TRIMMED}<end_of_turn>{Z}{NL}",
            "<start_of_turn>model\n",
        ),
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        plain=("\n\n", "\n\n\n", "<b>"),
        eos="<eos>",
    ),
    Family(
        name="Gemma 4, no thought",
        source="<bos>"
        + spoken(
            f"<|turn>user\n{TRIMMED}<turn|>\n",
            f"<|turn>model\n{A}{TRIMMED}<turn|>{Z}{NL}",
            "<|turn>model\n{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}",
            f"<|turn>system\n{TRIMMED}<turn|>\n",
        ),
        special=("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
        eos="<eos>",
        prompt_adds=True,
        refused={name: f"{OPTION} = true" for name in SEVERAL},
    ),
    Family(
        name="Mistral v1",
        source="<s>"
        + spoken(
            f"[INST] {SAID} [/INST]",
            f"{A}{SAID}</s>{Z}",
            "",
            no_system("roles must alternate user and assistant"),
        ),
        special=INST,
        eos="</s>",
        refused={"system": "roles must alternate"},
    ),
    Family(
        name="Mistral v3",
        source="<s>" + spoken(f"[INST] {ON_LAST}{SAID}[/INST]", f"{A} {TRIMMED}</s>{Z}", ""),
        special=INST,
        eos="</s>",
        refused=DROPS,
    ),
    Family(
        name="Mistral tekken",
        source="<s>" + spoken(f"[INST]{ON_LAST}{SAID}[/INST]", f"{A}{TRIMMED}</s>{Z}", ""),
        special=INST,
        eos="</s>",
        refused=DROPS,
    ),
    Family(
        name="Mistral v7",
        source="<s>"
        + spoken(f"[INST]{SAID}[/INST]", f"{A}{SAID}</s>{Z}", "", f"[SYSTEM_PROMPT]{SAID}[/SYSTEM_PROMPT]"),
        special=INST,
        eos="</s>",
    ),
    Family(
        name="Phi-3",
        source=spoken(
            f"<|user|>\n{SAID}<|end|>\n",
            f"<|assistant|>\n{A}{SAID}<|end|>{Z}{NL}",
            "<|assistant|>\n",
            f"<|system|>\n{SAID}<|end|>\n",
            last="<|endoftext|>",
        ),
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"),
        eos="<|endoftext|>",
    ),
    Family(
        name="Zephyr",
        source=spoken(
            f"<|user|>\n{SAID}</s>\n",
            f"<|assistant|>\n{A}{SAID}</s>{Z}{NL}",
            "<|assistant|>\n",
            f"<|system|>\n{SAID}</s>\n",
        ),
        special=("<s>", "</s>"),
        eos="</s>",
    ),
    Family(
        name="Vicuna",
        source=UNLESS_SYSTEM
        + "A chat between a curious user and an assistant. {% endif %}"
        + spoken(f"USER: {SAID} ", f"ASSISTANT:{A} {SAID}</s>{Z}", "ASSISTANT:", f"{SAID} "),
        special=("<s>", "</s>"),
        eos="</s>",
    ),
    Family(
        name="Alpaca",
        source=spoken(
            f"### Instruction:\n{SAID}\n\n",
            f"### Response:\n{A}{SAID}</s>{Z}{NL}{NL}",
            "### Response:\n",
            f"{SAID}\n\n",
        ),
        special=("<s>", "</s>"),
        eos="</s>",
    ),
    Family(
        name="Command R",
        source="<BOS_TOKEN>"
        + spoken(
            COHERE_TURN.format("USER"),
            f"<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{A}{SAID}<|END_OF_TURN_TOKEN|>{Z}",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            COHERE_TURN.format("SYSTEM"),
        ),
        special=COHERE,
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        name="Command A",
        source="<BOS_TOKEN>"
        + spoken(
            COHERE_TURN.format("USER"),
            f"<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{A}{SAID}<|END_RESPONSE|>"
            f"<|END_OF_TURN_TOKEN|>{Z}",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
            COHERE_TURN.format("SYSTEM"),
        ),
        special=COHERE,
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        name="GLM-4.5",
        source="[gMASK]<sop>"
        + spoken(
            f"<|user|>\n{SAID}",
            f"<|assistant|>{A}{NL}"
            + thoughts(
                "<think>{{ r }}</think>\n{{ c | trim }}", "<think></think>\n{{ c | trim }}", "loop.last and r"
            )
            + Z,
            "<|assistant|>",
            f"<|system|>\n{SAID}",
        ),
        special=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
        plain=("<think>", "</think>"),
        eos="<|endoftext|>",
        adds_eos=True,
        refused={"three thoughts": LEFT_OUT},
    ),
    Family(
        name="Apertus",
        source="<s>{% set ns = namespace(open=false) %}"
        + spoken(
            "{% if ns.open %}"
            + A
            + "<|assistant_end|>"
            + Z
            + "{% endif %}<|user_start|>{{ m.content }}<|user_end|>",
            f"<|assistant_start|>{A}{SAID}{Z}{{% set ns.open = true %}}",
            "<|assistant_start|>",
            f"<|system_start|>{SAID}<|system_end|>",
        ),
        special=(
            "<s>",
            "<|user_start|>",
            "<|user_end|>",
            "<|assistant_start|>",
            "<|assistant_end|>",
            "<|system_start|>",
            "<|system_end|>",
        ),
        eos="<|assistant_end|>",
        adds_eos=True,
    ),
    Family(
        name="DeepSeek V3",
        source="<｜begin▁of▁sentence｜>"
        + spoken(
            f"<｜User｜>{SAID}", f"<｜Assistant｜>{A}{SAID}<｜end▁of▁sentence｜>{Z}", "<｜Assistant｜>", SAID
        ),
        special=SEEK,
        eos=SEEK[1],
    ),
    Family(
        name="DeepSeek R1",
        source="<｜begin▁of▁sentence｜>"
        + spoken(
            f"<｜User｜>{SAID}",
            f"<｜Assistant｜>{A}{{{{ m.content.split('</think>')[-1].lstrip('\n') }}}}"
            f"<｜end▁of▁sentence｜>{Z}",
            "<｜Assistant｜><think>\n",
            SAID,
        ),
        special=SEEK,
        plain=("<think>", "</think>"),
        eos=SEEK[1],
        own_thought=True,
        refused=dict.fromkeys(ONES, BEGIN) | ASKS,
    ),
    Family(
        name="DeepSeek V3.1",
        source="<｜begin▁of▁sentence｜>"
        + spoken(
            f"<｜User｜>{SAID}",
            f"<｜Assistant｜></think>{A}{{{{ m.content.split('</think>')[-1] }}}}<｜end▁of▁sentence｜>{Z}",
            "<｜Assistant｜></think>",
            SAID,
        ),
        special=SEEK,
        plain=("<think>", "</think>"),
        eos=SEEK[1],
        refused={"thought": LEFT_OUT, "three thoughts": LEFT_OUT},
    ),
    Family(
        name="Qwen3",
        source=QWEN3,
        special=ML,
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
        refused={"three thoughts": LEFT_OUT},
    ),
    Family(
        name="Qwen3, thoughts off",
        source=QWEN3.replace(A, "").replace("{{ c }}{% else %}", A + "{{ c }}{% else %}" + A),
        special=ML,
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
        options={"enable_thinking": False},
        refused=ASKS | {"thought": LEFT_OUT},
    ),
    Family(
        name="Qwen3.5",
        source=QWEN35,
        special=ML,
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
        refused=ASKS,
    ),
    Family(
        name="Qwen3.5, thoughts off",
        source=QWEN35_OFF,
        special=ML,
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
        options={"enable_thinking": False},
        refused=ASKS | {"thought": LEFT_OUT},
    ),
    Family(
        name="Nemotron 3",
        source=NEMOTRON,
        special=ML,
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
        prompt_adds=True,
        refused=ASKS,
    ),
    Family(
        name="Nemotron 3, thoughts off",
        source=NEMOTRON.replace(A, "").replace("</think>{{ c }}", "</think>" + A + "{{ c }}"),
        special=ML,
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
        options={"enable_thinking": False},
        refused={"three thoughts": LEFT_OUT, "thought": LEFT_OUT},
    ),
    Family(
        name="GPT-OSS",
        source="<|start|>system<|message|>You are ChatGPT.\nCurrent date: "
        "{{ strftime_now('%Y-%m-%d') }}<|end|>"
        + spoken(
            f"<|start|>user<|message|>{SAID}<|end|>",
            f"<|start|>assistant{A}<|channel|>final<|message|>{SAID}"
            f"{{% if loop.last %}}<|return|>{{% endif %}}{Z}{{% if not loop.last %}}<|end|>{{% endif %}}",
            "<|start|>assistant",
            f"<|start|>developer<|message|># Instructions\n\n{SAID}<|end|>",
        ),
        special=HARMONY,
        eos="<|return|>",
    ),
    Family(
        name="Granite",
        source="{% if messages[0].role != 'system' %}<|start_of_role|>system<|end_of_role|>Today's Date:"
        " {{ strftime_now('%B %d, %Y') }}.\nYou are Granite.<|end_of_text|>\n{% endif %}"
        + spoken(
            f"<|start_of_role|>user<|end_of_role|>{SAID}<|end_of_text|>\n",
            f"<|start_of_role|>assistant<|end_of_role|>{A}{SAID}<|end_of_text|>{Z}{NL}",
            "<|start_of_role|>assistant<|end_of_role|>",
            f"<|start_of_role|>system<|end_of_role|>{SAID}<|end_of_text|>\n",
        ),
        special=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        eos="<|end_of_text|>",
    ),
    Family(
        name="Falcon",
        source=spoken(
            f"{{% if not loop.first %}}{NL}{NL}{{% endif %}}User: {TRIMMED}",
            f"\n\nFalcon:{A} {TRIMMED}{Z}",
            "\n\nFalcon:",
            SAID,
        ),
        special=("<|endoftext|>",),
        eos="<|endoftext|>",
        adds_eos=True,
    ),
    Family(
        name="OLMo",
        source="<|endoftext|>"
        + spoken(
            f"<|user|>\n{SAID}\n",
            f"<|assistant|>\n{A}{SAID}<|endoftext|>{Z}{NL}",
            "<|assistant|>\n",
            f"<|system|>\n{SAID}\n",
        ),
        special=("<|endoftext|>",),
        eos="<|endoftext|>",
    ),
    Family(
        name="MiniMax",
        source=spoken(
            f"<beginning_of_sentence>user name=user\n{SAID}<end_of_sentence>\n",
            f"<beginning_of_sentence>ai name=assistant\n{A}{SAID}<end_of_sentence>{Z}{NL}",
            "<beginning_of_sentence>ai name=assistant\n",
            f"<beginning_of_sentence>system ai_setting=assistant\n{SAID}<end_of_sentence>\n",
        ),
        special=("<beginning_of_sentence>", "<end_of_sentence>"),
        eos="<end_of_sentence>",
    ),
    Family(
        name="MiniMax M2",
        source="]~!b["
        + spoken(
            f"]~b]user\n{SAID}[e~[\n",
            f"]~b]ai\n{A}"
            + thoughts("<think>\n{{ r }}\n</think>\n\n{{ c }}", "{{ c }}", "loop.last and r")
            + f"[e~[{Z}{NL}",
            "]~b]ai\n<think>\n",
            f"]~b]system\n{SAID}[e~[\n",
        )
        .replace(f"{A}{{% set r", "{% set r")
        .replace("<think>\n{{ r }}", "<think>\n" + A + "{{ r }}")
        .replace("{% else %}{{ c }}", "{% else %}" + A + "{{ c }}"),
        special=("]~!b[", "]~b]", "[e~["),
        plain=("<think>", "</think>"),
        eos="[e~[",
        refused=dict.fromkeys(ONES, BEGIN) | ASKS,
    ),
    Family(
        name="SmolLM3, thoughts off",
        source="<|im_start|>system\n## Metadata\n\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
        "Reasoning Mode:"
        " {{ '/no_think' if not enable_thinking else '/think' }}\n\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}You are SmolLM.{% endif %}"
        "<|im_end|>\n"
        + spoken(
            f"<|im_start|>user\n{SAID}<|im_end|>\n",
            f"<|im_start|>assistant\n{{% if not enable_thinking %}}<think>\n\n</think>\n{{% endif %}}{A}"
            f"{{{{ m.content.lstrip('\n') }}}}<|im_end|>{Z}{NL}",
            "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}",
        ),
        special=ML,
        eos="<|im_end|>",
        options={"enable_thinking": False},
    ),
    Family(
        name="LLaVA",
        source=spoken(f"USER: {PART} ", f"ASSISTANT:{A} {PART}{Z} ", "ASSISTANT:", f"{PART} "),
        special=("<s>", "</s>", "<image>"),
        eos="</s>",
        adds_eos=True,
    ),
    Family(
        name="Parts, with an end",
        source=spoken(
            "<|im_start|>user\n{{ m.content[0]['text'] }}<|im_end|>\n",
            f"<|im_start|>assistant\n{A}{{{{ m.content[0]['text'] }}}}<|im_end|>{Z}{NL}",
            "<|im_start|>assistant\n",
            "<|im_start|>system\n{{ m.content[0]['text'] }}<|im_end|>\n",
        ),
        special=ML,
        eos="<|im_end|>",
    ),
    Family(
        name="Metharme",
        source="<s>"
        + spoken(
            "<|user|>{{ m.content.strip() }}",
            f"<|model|>{A}{{{{ m.content.strip() }}}}{{% if loop.last %}}</s>{{% endif %}}{Z}",
            "<|model|>",
            f"<|system|>{SAID}",
        ),
        special=("<s>", "</s>", "<|user|>", "<|model|>", "<|system|>"),
        eos="</s>",
    ),
    Family(
        name="RWKV-World",
        source=spoken(
            "User: {{ m.content.strip() }}\n\n",
            f"Assistant:{A} {{{{ m.content.strip() }}}}{Z}{NL}{NL}",
            "Assistant:",
            "System: {{ m.content.strip() }}\n\n",
        ),
        special=("<|endoftext|>",),
        eos="<|endoftext|>",
        adds_eos=True,
    ),
)

"""Colours, fonts and style sheet of the chat page: those of the report."""

from __future__ import annotations

from typing import Any

PAPER, RAISED, INK, SOFT, RULE = (
    ("#fcfbf8", "#14171a"),
    ("#f4f2ec", "#1c2024"),
    ("#1b2126", "#e9e6e0"),
    ("#555e67", "#a9b0b7"),
    ("#dcd8ce", "#363c42"),
)
"""Colours of the report, light and dark; see ui/report/templates/style.css."""
STRONG = ("#0b5c7a", "#86c8e3")
COLOURS_OF_REPORT = (PAPER, RAISED, INK, SOFT, RULE, STRONG)
COLOURS = {
    "body_background_fill": PAPER,
    "body_text_color": INK,
    "body_text_color_subdued": SOFT,
    "background_fill_primary": PAPER,
    "background_fill_secondary": RAISED,
    "block_background_fill": RAISED,
    "block_border_color": RULE,
    "block_label_background_fill": RAISED,
    "block_label_text_color": SOFT,
    "block_title_text_color": SOFT,
    "block_info_text_color": SOFT,
    "border_color_primary": RULE,
    "input_background_fill": PAPER,
    "input_border_color": RULE,
    "input_border_color_focus": STRONG,
    "input_placeholder_color": SOFT,
    "checkbox_label_background_fill": RAISED,
    "checkbox_label_background_fill_selected": RAISED,
    "checkbox_label_text_color": INK,
    "checkbox_label_text_color_selected": INK,
    "checkbox_background_color_selected": STRONG,
    "checkbox_border_color_selected": STRONG,
    "slider_color": STRONG,
    "button_primary_background_fill": STRONG,
    "button_primary_background_fill_hover": ("#084860", "#a8d8ec"),
    "button_primary_text_color": ("#fcfbf8", "#14171a"),
    "button_primary_text_color_hover": ("#fcfbf8", "#14171a"),
    "button_secondary_background_fill": RAISED,
    "button_secondary_background_fill_hover": RULE,
    "button_secondary_text_color": INK,
}
ACCENT = (
    *("#eef6f9", "#d9ebf2", "#b6d7e4", "#86c8e3", "#4f9dbb", "#0b5c7a"),
    *("#0a536e", "#084860", "#073c50", "#053040", "#031f2a"),
)
NEUTRAL = (
    *("#fcfbf8", "#f4f2ec", "#e6e2d8", "#dcd8ce", "#a9b0b7", "#7d868e"),
    *("#555e67", "#363c42", "#2a2f34", "#1c2024", "#14171a"),
)

CSS = """
.gradio-container { max-width: 96rem !important; }
.head .eyebrow { margin: 0; opacity: .75; font-size: .75rem; font-weight: 600; letter-spacing: .08em;
                 text-transform: uppercase; }
.head h1 { margin: .2rem 0 0; font-size: clamp(1.7rem, 1.2rem + 2vw, 2.5rem); font-weight: 650;
           letter-spacing: -.02em; line-height: 1.2; overflow-wrap: anywhere; }
.head p { margin: .3rem 0 0; opacity: .85; overflow-wrap: anywhere; }
#actions button { flex: 1 1 0; max-width: 9rem; }
#modes .form { display: flex; flex-direction: row; flex-wrap: wrap; border: 0; background: none; }
#modes .form > * { flex: 0 0 auto !important; width: auto; padding: 0 1.5rem .2rem 0; border: 0;
                   background: none; }
#ballot .votes { font-size: .85rem; opacity: .85; }
#ballot button { flex: 0 1 9rem; }
#answers, #blind { display: grid !important; gap: .25rem 1rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
:is(#answers, #blind) > .column { min-width: 0 !important; gap: .25rem; margin-bottom: 1rem;
                                  align-content: start; }
:is(#answers, #blind) > .column:not(.hide) { display: grid; grid-row: span 3; grid-template-rows: subgrid; }
#answers button { justify-self: start; }
.html-container { padding: 0 !important; }
.arm h3 { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
.arm p { margin: .15rem 0 0; font-size: .85rem; line-height: 1.3; opacity: .8; overflow-wrap: anywhere; }
.answer p, .answer .md { margin: 0; padding: .6rem .75rem; min-height: 8.5rem; font-size: 1rem;
            line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere;
            height: 100%; box-sizing: border-box;
            border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
            background: var(--block-background-fill); }
.md { white-space: normal !important; }
.md p { margin: 0 0 .5em; padding: 0; min-height: 0; height: auto; border: 0; background: none; }
.md ul, .md ol { margin: 0 0 .5em; padding-left: 1.4em; list-style: revert; }
.md pre { white-space: pre-wrap; margin: 0 0 .5em; }
.history h3 { margin: 1rem 0 .25rem; font-size: 1rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.history dt { font-weight: 600; font-size: .85rem; }
.history dd { margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.answer p:empty::before { content: "The answer appears here."; opacity: .6; }
.answer p.nothing:empty::before { content: "An empty answer."; }
.chat-status p { margin: 0; min-height: 1.6em; line-height: 1.6; overflow-wrap: anywhere; }
.chat-status p.wrong { font-weight: 600; }
"""


def theme(gradio: Any) -> Any:
    """The colours and system fonts of the report; other fonts would be fetched from elsewhere."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"]
    made = gradio.themes.Default(
        primary_hue=gradio.themes.Color(*ACCENT, name="accent"),
        neutral_hue=gradio.themes.Color(*NEUTRAL, name="paper"),
        radius_size=gradio.themes.sizes.radius_sm,
        font=fonts,
        font_mono=mono,
    )
    chosen: dict[str, str] = {}
    for name, (light, dark) in COLOURS.items():
        chosen |= {name: light, f"{name}_dark": dark}
    return made.set(**chosen, color_accent=STRONG[0], block_shadow="none", block_label_text_weight="600")

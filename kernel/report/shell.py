"""What a report's page is: one HTML file that needs nothing else, neither network nor neighbours.

Styles, the few lines of script, plots and pictures are in it; a content security policy forbids whatever is not.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from pathlib import Path


def html_page(title: str, subtitle: str, sections: Iterable[tuple[str, str, str]], footer: str) -> str:
    """A page as HTML text.

    Args:
        title: plain text.
        subtitle: HTML, a line.
        sections: of each its id, heading and HTML; one without HTML is left out.
        footer: HTML.
    """
    style = _beside("report.css")
    script = _beside("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    filled = [(name, heading, body) for name, heading, body in sections if body]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in filled)
    parts = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>{body}</section>'
        for name, heading, body in filled
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{escape(title)}</h1>
<p class="soft">{subtitle}</p>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main id="main" tabindex="-1">
{parts}
</main>
<footer><p>{footer}</p></footer>
<script>{script}</script>
</body>
</html>
"""


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

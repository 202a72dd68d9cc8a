"""A hook of mkdocs: pages name each other as the repository does (docs/data.md); in the site these names are links."""

import re
from pathlib import Path

HERE = Path(__file__).parent
NAME = re.compile(r"(?<![\w/`(\[])docs/([\w-]+\.md)(?![\w`\])])")
# A link to a file of the repository that is no page of the site keeps its words.
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./|results/)[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Names of pages outside code become links."""
    parts = re.split(r"(^```.*?^```|^ {4}.*?$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else _linked(part) for number, part in enumerate(parts))


def _linked(text: str) -> str:
    text = OUTSIDE.sub(r"\1", text)
    return NAME.sub(lambda m: f"[{m[1][:-3]}]({m[1]})" if (HERE / m[1]).is_file() else m[0], text)

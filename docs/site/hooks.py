"""What MkDocs asks of this project: pages made from the code, and links as a site has them.

Pages of ``docs/`` and of the top of the repository are read as they are: there is no second copy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pages  # MkDocs looks for what a hook imports beside it
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tintray.jobs.config.reference import FILES

ROOT = Path(__file__).resolve().parents[2]
FROM_ELSEWHERE = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{f"jobs/config/{name}.schema.json": f"schemas/{name}.schema.json" for name in FILES},
}
"""What lies outside ``docs/``, and where the site has it."""
LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
ALONE = ("index.md", "tutorial.md")  # a section of one page needs no list beside it


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name in the navigation what a pattern such as ``commands/*`` stands for.

    There is no page for what is not found: it would look for its style at the root of a server.
    """
    config.theme.static_templates.discard("404.html")
    config.nav = [_expanded(entry) for entry in config.nav or ()]
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        ((title, inner),) = entry.items()
        if isinstance(inner, list):
            return {title: [one for part in inner for one in _listed(part)]}
        return {title: _listed(inner)} if inner.endswith("/*") else entry
    return entry


def _listed(entry: Any) -> list[Any]:
    if isinstance(entry, str) and entry.endswith("/*"):
        return list(pages.in_folder(entry.removesuffix("*")))
    return [_expanded(entry)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code, and what lies outside ``docs/``."""
    for path, text in pages.generated().items():
        files.append(File.generated(config, path, content=text))
    for source, path in FROM_ELSEWHERE.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add what the code knows about a page's subject; lead links to where the site has a page."""
    path = page.file.src_uri
    if path in ALONE:
        page.meta["hide"] = ["navigation"]
    source = next((name for name, to in FROM_ELSEWHERE.items() if to == path), f"docs/{path}")
    folder = (ROOT / source).parent

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        found = folder.joinpath(target).resolve()
        if not found.is_relative_to(ROOT):
            return link[0]
        name = found.relative_to(ROOT).as_posix()
        there = "../" * path.count("/") + FROM_ELSEWHERE.get(name, name.removeprefix("docs/"))
        return f"[{_title(found) if text.endswith('.md') else text}]({there}{anchor or ''})"

    return LINK.sub(led, pages.completed(path, markdown))


def _title(path: Path) -> str:
    """The heading of a page, in the place of the name of its file."""
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("# ")

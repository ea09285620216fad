"""What holds for every file of the page, whatever it does: size, safety, types, delivery."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
import servers
from helpers import REPOSITORY

from gpt2cli import api
from gpt2cli.serving.http import page
from gpt2cli.serving.http.settings import LOCAL, Policy

FILES = sorted(path for path in page.FILES.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MOST_BYTES, MOST_LINES = 150_000, 300
TSC = REPOSITORY / "tests" / "page" / "node_modules" / ".bin" / "tsc"

# What reads text as HTML or as a program, and what the policy forbids.
DANGEROUS = {
    "HTML from text": r"(?:inner|outer)HTML|insertAdjacentHTML|document\.write|srcdoc"
    r"|createContextualFragment|DOMParser|setHTML",
    "a program from text": r"\beval\b|new Function|set(?:Timeout|Interval)\(\s*[\"'`]|javascript:",
    "a style in the markup": r"\bstyle=|setAttribute\(\s*[\"']style|\.cssText",
    "a listener in the markup": r"\son[a-z]+=\s*[\"']|setAttribute\(\s*[\"']on",
}
# A link that a person may follow is not loaded; everything else that names another host is.
ELSEWHERE = re.compile(
    r"(?:\b(?:src|srcset|action|poster|from|import|importScripts|fetch|url|WebSocket|EventSource"
    r"|sendBeacon|Worker|Request|URL)\b\W{0,4}|<link[^>]*href=\"?|@import\W+)(?:https?:)?//\w"
)
EXPORT = re.compile(r"^export (?:async )?(?:function\*?|const(?= \w+ = (?:async )?\()) (\w+)", re.M)
IMPORT = re.compile(r"(?:^import\b[^;\"(]*|^export [^;\"(=]* from |\bimport\()\"([^\"]+)\"", re.M)


def ids(path: Path) -> str:
    return path.relative_to(page.FILES).as_posix()


def name_of(path: Path) -> str:
    """The URL of a file."""
    return page.PREFIX + ids(path)


class Markup(HTMLParser):
    """The files that a page of HTML names, and the identifiers of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[k] for k in ("src", "href") if k in given]


@pytest.fixture(scope="module")
def index() -> Markup:
    return Markup((page.FILES / "index.html").read_text(encoding="utf-8"))


def test_what_a_browser_is_sent_is_small() -> None:
    """All files as they travel: packed, with the comments and types that are there to be read."""
    sizes = {ids(path): len(gzip.compress(path.read_bytes(), mtime=0)) for path in FILES}
    assert sum(sizes.values()) <= MOST_BYTES, sizes


@pytest.mark.parametrize("path", SCRIPTS, ids=ids)
def test_a_module_can_be_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES


@pytest.mark.parametrize("path", FILES, ids=ids)
@pytest.mark.parametrize("what", DANGEROUS)
def test_text_becomes_neither_markup_nor_a_program(path: Path, what: str) -> None:
    assert re.findall(DANGEROUS[what], path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    assert [found[0] for found in ELSEWHERE.finditer(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        'import x from "https://a.b/c.js"',
        'import "//a.b/c.js"',
        'await fetch("https://a.b")',
        "background: url(//a.b/c.png)",
        "@import 'https://a.b/c.css'",
        '<img src="http://a.b">',
        '<link rel="stylesheet" href="https://a.b">',
        "navigator.sendBeacon('https://a.b')",
    ],
)
def test_what_would_be_loaded_from_elsewhere_is_recognised(text: str) -> None:
    assert ELSEWHERE.search(text)
    assert not ELSEWHERE.search('h("a", { href: "https://arxiv.org/abs/1607.06450" }, "Ba 2016")')
    assert not ELSEWHERE.search('const SVG = "http://www.w3.org/2000/svg";')


def undocumented(text: str) -> Iterator[str]:
    """Functions that a module exports without a comment of JSDoc just above them."""
    for found in EXPORT.finditer(text):
        before = text[: found.start()].rstrip("\n ")
        comment = before[before.rfind("/*") :]
        if not (comment.startswith("/**") and comment.endswith("*/")):
            yield found[1]


@pytest.mark.parametrize("path", SCRIPTS, ids=ids)
def test_every_exported_function_is_documented(path: Path) -> None:
    assert list(undocumented(path.read_text(encoding="utf-8"))) == []


def test_an_undocumented_function_is_found() -> None:
    text = "/** Is. */\nexport function a() {}\n/* no */\nexport const b = () => 1;\n"
    text += "export async function* c() {}\nexport const D = 3;\n"
    assert list(undocumented(text)) == ["b", "c"]


def test_what_is_exported_is_imported() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in SCRIPTS}
    for path, text in texts.items():
        others = " ".join(other for at, other in texts.items() if at != path)
        for name in re.findall(r"^export (?:async )?(?:function\*?|const|class) (\w+)", text, re.M):
            assert re.search(rf"\b{name}\b", others), f"{ids(path)}: {name}"


def test_types_are_right() -> None:
    tsc = str(TSC) if TSC.exists() else shutil.which("tsc")
    if tsc is None:
        pytest.skip("TypeScript is not installed: npm install --prefix tests/page")
    command = [tsc, "-p", str(REPOSITORY / "tests" / "page")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_file_that_the_page_names_is_served(index: Markup) -> None:
    for link in index.links:
        if not link.startswith("#"):
            assert urljoin("/", link) in page.files(), link
    assert len(index.ids) == len(set(index.ids))
    assert {link[1:] for link in index.links if link.startswith("#")} <= set(index.ids)


def test_every_file_is_used(index: Markup) -> None:
    used = {urljoin("/", link) for link in index.links if not link.startswith("#")} | {"/"}
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        used |= {urljoin(name_of(path), found) for found in IMPORT.findall(text)}
    assert used == set(page.files())


def test_modules_import_what_is_there() -> None:
    for path in SCRIPTS:
        for found in IMPORT.findall(path.read_text(encoding="utf-8")):
            assert found.startswith("."), found
            assert (path.parent / found).is_file(), found


def test_the_wheel_has_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(REPOSITORY)
    distribution = setuptools.Distribution()
    distribution.parse_config_files()
    distribution.include_package_data = False  # what pyproject.toml names must be enough
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    carried = {
        (REPOSITORY / source / name).resolve()
        for _, source, _, names in build.data_files
        for name in names
    }
    assert set(FILES) <= carried


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with servers.here(api.load("bard"), policy=Policy(key="secret", hosts=LOCAL)) as (port, _):
        yield port


@pytest.mark.parametrize("url", sorted(page.files()))
def test_a_file_is_served_to_anyone_with_the_policy(port: int, url: str) -> None:
    found = servers.ask(port, url)
    assert (found.status, found.body) == (200, page.files()[url].read_bytes())
    rules = dict(
        rule.split(" ", 1) for rule in found.headers["content-security-policy"].split("; ")
    )
    assert rules["default-src"] == "'none'"
    assert {rules[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cross-origin-opener-policy"] == "same-origin"
    assert found.headers["cross-origin-resource-policy"] == "same-origin"
    kind = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    wanted = kind.get(page.files()[url].suffix, "text/html")
    assert found.headers["content-type"].partition(";")[0] == wanted
    assert not any(name.startswith("access-control") for name in found.headers)


@pytest.mark.parametrize(
    "url",
    [
        "/page/../http/page.py",
        "/page/%2e%2e/http/page.py",
        "/page//etc/passwd",
        "/page/",
        "/page/x",
    ],
)
def test_nothing_else_is_served(port: int, url: str) -> None:
    headers = {"Authorization": "Bearer secret"}
    assert servers.ask(port, url, headers=headers).status == 404


@pytest.mark.parametrize("url", ["/", "/page/app.js", "/page/v1/model"])
def test_a_page_with_a_name_that_points_here_is_refused(port: int, url: str) -> None:
    assert servers.ask(port, url, headers={"Host": "evil.example"}).status == 403


def test_the_page_s_questions_need_the_key(port: int) -> None:
    assert servers.ask(port, "/page/v1/model").status == 401
    assert servers.ask(port, "/page/v1/next", {"prompt": "O,"}).status == 401


def test_a_page_from_elsewhere_can_neither_read_nor_ask(port: int) -> None:
    origin = {"Origin": "https://evil.example"}
    found = servers.ask(port, "/", headers=origin)
    assert not any(name.startswith("access-control") for name in found.headers)
    headers = origin | {"Authorization": "Bearer secret"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body, typed = b'{"prompt": "O,"}', headers | {"Content-Type": kind}
        found = servers.ask(port, "/page/v1/next", body, headers=typed)
        assert found.status in (405, 415)
    asked = headers | {"Access-Control-Request-Method": "POST"}
    assert servers.ask(port, "/page/v1/next", method="OPTIONS", headers=asked).status >= 400

"""Make a corpus of English documentation from three packages of the package index: the same bytes on every system.

    python scripts/make_corpus.py [--out outputs/corpus/documentation.jsonl] [--packages FOLDER]

The packages document the services of two clouds and the modules of a tool that sets up machines. Their licences are
free (Apache 2.0, Apache 2.0, GPL 3); the corpus is made where it is used, and is not distributed. pip downloads the
packages, which are pure Python, and checks their sha256.

A document is all documentation in one file of a package; each text occurs once in the whole corpus. Documents are
sorted by the sha256 of their names, so that the last tenth is like the rest. The digest of the corpus is checked.
"""

import argparse
import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = {
    "botocore==1.44.8": "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043",
    "google-api-python-client==2.202.0": "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
    "ansible==12.3.0": "cd156f82fa87f7a899212b0efa9f7ca3a24d609212de9f78428a572eb01e5414",
}
SHA256 = "708a3d8fc9f15d694e5690d16a20896239037a4f1830647420740b142674c32a"
SHORTEST = 40  # characters; a shorter text is a name, not a sentence
DOCUMENTED = ("documentation", "description")
LINE_BREAKS = re.compile(r"</?(?:p|li|ul|ol|dl|dt|dd|br|div|note|important|h\d)\b[^>]*>")
TAGS = re.compile(r"</?[a-zA-Z][^<>]*>")
# A module of Ansible is documented by YAML in a string.
IN_MODULES = re.compile(r"""^(?:DOCUMENTATION|EXAMPLES|RETURN)\s*=\s*r?(\"{3}|'{3})(.*?)\1""", re.DOTALL | re.MULTILINE)


def download(folder: Path) -> None:
    """Download the packages into a folder with pip."""
    lines = [f"{package} --hash=sha256:{digest}" for package, digest in PACKAGES.items()]
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
        subprocess.run(command, check=True)


def wheels(folder: Path) -> list[Path]:
    """Return the packages in a folder, in the order of PACKAGES.

    Raises:
        SystemExit: if a package is missing or has another sha256.
    """
    by_digest = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.glob("*.whl")}
    for package, digest in PACKAGES.items():
        if digest not in by_digest:
            sys.exit(f"--packages={folder}: has no {package} with the sha256 {digest}: leave --packages out")
    return [by_digest[digest] for digest in PACKAGES.values()]


def documents(wheel: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each file of a package that documents something, and its texts in their order."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith((".json", ".json.gz")):
                content = archive.read(name)
                if name.endswith(".gz"):
                    content = gzip.decompress(content)
                yield name, [plain(text) for text in described(json.loads(content))]
            elif name.endswith(".py"):
                found = IN_MODULES.findall(archive.read(name).decode("utf-8", "replace"))
                yield name, [indented(text) for _, text in found]
            elif name.endswith((".md", ".rst")):
                yield name, [indented(archive.read(name).decode("utf-8", "replace"))]


def described(node: Any) -> Iterator[str]:
    """Yield the texts under the keys in DOCUMENTED, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in DOCUMENTED and isinstance(value, str):
                yield value
            else:
                yield from described(value)
    elif isinstance(node, list):
        for value in node:
            yield from described(value)


def plain(text: str) -> str:
    """Return a text without its tags."""
    return stripped(html.unescape(TAGS.sub("", LINE_BREAKS.sub("\n", text))))


def stripped(text: str) -> str:
    """Return a text without empty lines, and with a single space wherever a line has blanks; none at its ends."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def indented(text: str) -> str:
    """Return a text with its indentation, but without trailing blanks and without empty lines at its start and end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def corpus(paths: list[Path]) -> list[str]:
    """Return the lines of the corpus: each document as JSON, each text in it once."""
    seen: set[bytes] = set()
    found: list[tuple[str, str]] = []
    for path in paths:
        for name, texts in documents(path):
            kept = []
            for text in texts:
                digest = hashlib.sha256(text.encode()).digest()
                if len(text) >= SHORTEST and digest not in seen:
                    seen.add(digest)
                    kept.append(text)
            if kept:
                line = json.dumps({"text": "\n\n".join(kept)}, ensure_ascii=False)
                found.append((hashlib.sha256(name.encode()).hexdigest(), line))
    return [line for _, line in sorted(found)]


def main() -> None:
    """Make the corpus, and print its size and digest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs", "corpus", "documentation.jsonl"))
    parser.add_argument("--packages", type=Path, help="a folder that has them already, without a network")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.packages
        if folder is None:
            folder = Path(temporary)
            download(folder)
        lines = corpus(wheels(folder))
    content = "".join(line + "\n" for line in lines).encode()
    digest = hashlib.sha256(content).hexdigest()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(content)
    print(f"{arguments.out}: {len(lines):,} documents, {len(content):,} bytes, sha256 {digest}")
    print(f"train: samout-train data=jsonl data.path={arguments.out} data.vocabulary=bpe")
    if digest != SHA256:
        sys.exit(
            f"this is another corpus than the one whose figures are recorded (sha256 {SHA256}): say so beside them"
        )


if __name__ == "__main__":
    main()

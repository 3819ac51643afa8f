"""Fetches the newest wheel of a package for this machine, checks its digest and unpacks it.

The last resort where Python has neither pip nor venv. Usage: NAME MAJOR DIRECTORY.
"""

import hashlib, html, io, os, platform, re, sys, urllib.parse, urllib.request, zipfile

name, major, into = sys.argv[1:4]
index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
machine = platform.machine().lower()
system = {"Linux": "manylinux", "Darwin": "macosx"}[platform.system()]


def get(url):
    with urllib.request.urlopen(url, timeout=180) as answer:
        return answer.read()


page_url = f"{index}/{name}/"
page = get(page_url).decode()
wheels = []
for href in re.findall(r'href="([^"]+)"', page):
    url = urllib.parse.urljoin(page_url, html.unescape(href))
    address, _, fragment = url.partition("#")
    file = address.rsplit("/", 1)[-1]
    parts = file.removesuffix(".whl").split("-")
    if not file.endswith(".whl") or len(parts) < 5:
        continue
    version = [int(digits) for digits in re.findall(r"\d+", parts[1])]
    if version[:1] == [int(major)] and system in parts[-1] and machine in parts[-1]:
        wheels.append((version, address, fragment))
if not wheels:
    sys.exit(f"{page_url} has no wheel of {name} {major} for {system} {machine}")

_, address, fragment = max(wheels)
content = get(address)
algorithm, _, digest = fragment.partition("=")
if algorithm != "sha256" or hashlib.sha256(content).hexdigest() != digest:
    sys.exit(f"{address} does not have the digest the index names")
zipfile.ZipFile(io.BytesIO(content)).extractall(into)

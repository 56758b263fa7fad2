"""Asks whether installed packages have known vulnerabilities: pip-audit over this Python's environment.

    python deploy/audit.py [--osv-url URL]

Exit 0 with one line when none are known, 1 with a line for each that is. Without a service that knows vulnerabilities
nothing can be said: one line says so, exit 0. That is tried first, with a release of which vulnerabilities have been
known for years, because some mirrors answer every question with "nothing known" or "no such package".
"""

import argparse
import http.client
import json
import subprocess
import sys
import urllib.error
import urllib.request

OSV = "https://api.osv.dev/v1/query"
KNOWN = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}
"""A release with known vulnerabilities (PYSEC-2014-8 and later ones)."""
SECONDS = 5

ACCEPTED: dict[str, str] = {}
"""Identifiers of vulnerabilities that do not concern us, each with the reason."""


def no_service(url: str) -> str:
    """Why the service at `url` cannot be asked; "" when it can."""
    request = urllib.request.Request(url, json.dumps(KNOWN).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        return f"HTTP status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        said = str(getattr(error, "reason", None) or error)
        return " ".join(said.split()) or type(error).__name__
    return "" if isinstance(found, dict) and found.get("vulns") else "it does not know what is known for years"


def audit(url: str) -> tuple[list[dict], str]:
    """What pip-audit says of every package, or why it says nothing."""
    accepted = [word for name in ACCEPTED for word in ("--ignore-vuln", name)]
    options = ["--vulnerability-service", "osv", "--osv-url", url, "--timeout", str(SECONDS), *accepted]
    shown = ["--format", "json", "--desc", "off", "--progress-spinner", "off", "--skip-editable"]
    command = [sys.executable, "-m", "pip_audit", *options, *shown]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return [], lines[-1] if lines else f"exit {done.returncode} without a word"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--osv-url", default=OSV, help="address of a service that speaks OSV's API")
    url = parser.parse_args().osv_url
    if not url.startswith(("http://", "https://")):
        parser.error(f"--osv-url {url!r}: write an address that begins with https://")
    reason = no_service(url)
    packages, failure = ([], "") if reason else audit(url)
    if failure:
        reason = no_service(url)  # it may have gone away meanwhile
    if reason:
        print(f"not audited: the vulnerability service cannot be reached ({reason})")
        return 0
    if failure:
        print(f"error: pip-audit failed: {failure}")
        return 1
    for package in packages:
        if "skip_reason" in package and "editable" not in package["skip_reason"]:
            print(f"not audited: {package['name']}: {package['skip_reason']}")
    asked = [package for package in packages if "vulns" in package]
    found = [(package, vulnerability) for package in asked for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        later = vulnerability["fix_versions"]
        mended = f"mended in {', '.join(later)}" if later else "not mended"
        names = ", ".join([vulnerability["id"], *vulnerability["aliases"]])
        print(f"{package['name']} {package['version']} is vulnerable: {names}; {mended}")
    if not asked:
        print("error: pip-audit found no packages")
    elif not found:
        print(f"audited: no vulnerabilities are known of {len(asked)} packages")
    return 1 if found or not asked else 0


if __name__ == "__main__":
    sys.exit(main())

"""Make the project's environment (.venv) and run a command in it. Standard library only.

    python3.11 dev.py EXTRAS -- COMMAND ...

EXTRAS is a comma-separated list of optional dependency groups, or "none". The environment is made with pip under
constraints.txt and made again only when pyproject.toml, constraints.txt or the extras ask for more.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("SDB_VENV", ROOT / ".venv"))


def main() -> int:
    """Install what EXTRAS name, then replace this process by COMMAND."""
    if sys.version_info < (3, 11):
        sys.exit(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: run make PYTHON=python3.11 ..."
        )
    extras, _, *command = sys.argv[1:]
    wanted = set() if extras == "none" else set(extras.split(","))
    stamp = VENV / "installed.txt"
    files = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    digest = hashlib.sha256(files).hexdigest()
    have = stamp.read_text().split() if stamp.exists() else []
    if have[:1] != [digest] or not wanted <= set(have[1:]):
        if not (VENV / "bin" / "python").exists():
            print(f"making {VENV} (once, a minute or two)", file=sys.stderr)
            venv.create(VENV, with_pip=True)
        wanted |= set(have[1:])
        target = str(ROOT) + (f"[{','.join(sorted(wanted))}]" if wanted else "")
        pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        status = subprocess.call([*pip, "-c", str(ROOT / "constraints.txt"), "-e", target])
        if status:
            return status
        stamp.write_text(" ".join([digest, *sorted(wanted)]))
    env = os.environ | {"PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(VENV)}
    os.execvpe(command[0], command, env)


if __name__ == "__main__":
    sys.exit(main())

"""Check the built wheel and sdist: the package's files as they are in the repository, all of them, and no tests."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "trackmetrics/"
AROUND = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "setup.cfg", "setup.py"}  # in an sdist


def in_wheel(path: Path) -> set[str]:
    """A wheel's files, but for what is about itself."""
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def in_sdist(path: Path) -> set[str]:
    """An sdist's files, but for what is about itself."""
    with tarfile.open(path) as sdist:
        names = {item.name.partition("/")[2] for item in sdist.getmembers() if item.isfile()}
    return {name for name in names if ".egg-info/" not in name}


def main(folder: str) -> None:
    """Exit with what is wrong, if anything is."""
    (wheel,) = Path(folder).glob("*.whl")
    (sdist,) = Path(folder).glob("*.tar.gz")
    listed = subprocess.run(["git", "ls-files", PACKAGE], check=True, capture_output=True, text=True).stdout
    package = set(listed.splitlines())
    for path, found, expected in (
        (wheel, in_wheel(wheel), package),
        (sdist, in_sdist(sdist), package | AROUND),
    ):
        if found != expected:
            sys.exit(f"{path.name} lacks {sorted(expected - found)}, and has {sorted(found - expected)} too many")
        print(f"{path.name}: {len(found)} files")


if __name__ == "__main__":
    main(sys.argv[1])

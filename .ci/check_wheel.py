"""Compare a wheel with git: it has every file of src/bitquilt, and nothing else."""

import subprocess
import sys
import zipfile

ROOT = "src/"

tracked = subprocess.run(
    ["git", "ls-files", ROOT + "bitquilt"], check=True, capture_output=True, text=True
).stdout.split()
expected = {path.removeprefix(ROOT) for path in tracked}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
for name in sorted(expected - packed):
    print(f"{sys.argv[1]} lacks {name}")
for name in sorted(packed - expected):
    print(f"{sys.argv[1]} has {name}, which git does not know")
sys.exit(packed != expected)

#!/bin/bash
# On a machine with a GPU: tests, speed, memory and determinism in at most 8 minutes, written to gpu_check_DATE.json.
#
#     benchmarks/gpu_check.sh [FOLDER]
#
# Each command has a time limit; one that fails is recorded with its exit code and the others still run.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
folder=${1:-.}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU: nothing to check on this machine"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # NAME SECONDS COMMAND…: run within the limit; keep output, exit code and duration
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$work/$name.out" 2>&1
    echo "$name $? $((SECONDS - started))" >>"$work/done"
    echo "$name: $(tail -n 1 "$work/$name.out")"
}

check fake_tests 60 "$python" -m pytest -q -p no:cacheprovider tests/contracts/test_device.py tests/losses/test_tiles.py
check gpu_tests 60 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/contracts/test_device.py
check resnet50_224 90 "$python" benchmarks/gpu_step.py --encoder resnet50 --size 224 --batch 256
check resnet18_64 60 "$python" benchmarks/gpu_step.py --encoder resnet18 --size 64 --batch 512
check cnn_28 60 "$python" benchmarks/gpu_step.py --encoder cnn --size 28 --batch 1024
check infonce 60 "$python" benchmarks/speed_infonce.py --threads 8 --rounds 3
check demo 80 "$python" -m medssl.cli demo out="$work/demo"

"$python" - "$work" "$folder" <<'END'
import datetime, json, pathlib, sys

work, folder = map(pathlib.Path, sys.argv[1:])
found = {}
for line in (work / "done").read_text().splitlines():
    name, code, seconds = line.split()
    said = (work / f"{name}.out").read_text(errors="replace").splitlines()[-3:]
    found[name] = {"exit": int(code), "seconds": int(seconds), "said": said}
path = folder / f"gpu_check_{datetime.date.today()}.json"
path.write_text(json.dumps(found, indent=1) + "\n")
print(path)
END

#!/usr/bin/env bash
# All that a machine with a GPU is asked, in under 8 minutes and without a network: doctor, tests, times.
#   bench/gpu_session.sh FOLDER [arguments of bench/gpu.py]
# Needs a Python (PYTHON, else python3) with torch and Triton, and the wheels in .whl/ for what that lacks of
# ase, vesin (docs/developer/gpu_session.md). Every step has its own limit and log; none stops the next.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: bench/gpu_session.sh FOLDER}" && cd "$1" && pwd)
shift
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$PWD:$PWD/tools:$site" PYTHONUNBUFFERED=1
failed=0

step() {  # step NAME SECONDS COMMAND...: run it for so long at most, into NAME.txt
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  timeout -k 5 "$seconds" "$@" >"$out/$name.txt" 2>&1
  local code=$?
  ((code == 0)) || failed=1
  printf '=== %s: exit status %d after %d s\n' "$name" "$code" $((SECONDS - start))
  tail -n 25 "$out/$name.txt"
}

if compgen -G '.whl/*.whl' >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-cache-dir --target "$site" .whl/*.whl || exit 1
fi
"$python" bench/gpu.py --check || exit 1
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
step doctor 75 "$python" -c 'from cace_fast.cli import main; main()' doctor --gpu
step tests 150 "$python" -m pytest tests/gpu/device tests/gpu/emulator -q -m "not slow" \
  --device "${CACE_FAST_EMULATE:-cuda}" -p no:cacheprovider "${workers[@]}"
step bench 245 "$python" bench/gpu.py --folder "$out" --minutes 4 "$@"
exit $failed

#!/usr/bin/env bash
# tests/decoders/native/test_decoder.py against the engine as GCC's sanitizers build it: memory
# and undefined behaviour first, then threads. Works on a temporary copy. One or two minutes, so no
# part of .ci/run.
# Usage: tests/sanitize.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r configs gpt2cli tests pyproject.toml "$copy"
cd "$copy"
rm -f gpt2cli/decoders/native/_engine*.so
library=gpt2cli/decoders/native/_engine$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

check() {  # the sanitizers, their library, arguments of pytest, which must not capture reports
    echo "== $1"
    g++ -g -O1 -std=c++17 -ffp-contract=fast -fno-math-errno -fno-omit-frame-pointer -fPIC \
        -shared -pthread "-fsanitize=$1" -fno-sanitize-recover=undefined \
        gpt2cli/decoders/native/engine.cpp -o "$library"
    LD_PRELOAD="$(g++ -print-file-name="$2")" PYTHONPATH="$copy" OMP_NUM_THREADS=2 \
        python -m pytest -q -s -p no:cacheprovider tests/decoders/native/test_decoder.py "${@:3}"
}

# Python keeps memory to its end, which is no leak of ours.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1

# NumPy's and PyTorch's threads synchronise by ways that the sanitizer does not see.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1

check address,undefined libasan.so "$@"
check thread libtsan.so "$@"

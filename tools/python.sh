#!/bin/sh
# Runs Python with the test packages when they are installed (.venv), else whatever python3 there is; 77 (skip) if none.
cd "$(dirname "$0")/.." || exit 1
for python in .venv/bin/python3 python3; do
    if command -v "$python" >/dev/null 2>&1; then exec "$python" "$@"; fi
done
echo "skip: no python3"
exit 77

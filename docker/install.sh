#!/usr/bin/env bash
# Installs one part of the locked packages into /opt/venv; the Dockerfile calls it once per layer.
#   install.sh cuda|cpu accelerator|rest
# accelerator: torch and NVIDIA's libraries, gigabytes that seldom change; rest: everything else.
set -euo pipefail

variant=$1 part=$2
machine=$(uname -m)
python=$(python3 -c 'import sys; print("py%d%d" % sys.version_info[:2])')
case $variant in
  cuda) lock=/locks/images/cuda-$machine-$python.txt ;;
  cpu) lock=/locks/tested/cpu-$machine-$python.txt ;;
  *)
    echo "VARIANT is cuda or cpu, not $variant" >&2
    exit 1
    ;;
esac
if [ ! -f "$lock" ]; then
  echo "there is no lock $(basename "$lock"): this base image has $(python3 --version) on $machine" >&2
  exit 1
fi

# Compiled here, because the unprivileged user cannot write into the environment: every start, and every health check, would
# compile all that it imports again.
install() {
  /uv/bin/uv pip install --no-config --python /opt/venv/bin/python --no-deps --compile-bytecode "$@"
}

accelerator='^(cuda-|flashinfer|nvidia-|tilelang|tokenspeed|torch==|triton==|vllm)'
selected=$(mktemp)
trap 'rm -f "$selected"' EXIT
case $part in
  accelerator)
    grep -E "$accelerator" "$lock" >"$selected"
    if [ "$variant" = cpu ]; then
      # The CPU lock leaves torch out: its CPU build has a local version that PyTorch's own index alone serves.
      torch=$(sed -n 's/^TORCH = "\(.*\)"$/\1/p' /locks/tested/bootstrap.py)
      install --find-links "$TORCH_CPU_WHEELS" "torch==$torch+cpu"
    fi
    ;;
  rest)
    grep -vE "$accelerator" "$lock" >"$selected"
    ;;
  *)
    echo "a part is accelerator or rest, not $part" >&2
    exit 1
    ;;
esac
install --requirement "$selected"

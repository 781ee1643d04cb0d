#!/usr/bin/env bash
# Trains on every GPU of this machine: torchrun starts one process for each, and the processes average their gradients.
# Run:    bash examples/multi_gpu.sh [options of a2c-compiled train]; with --dry as the first: two processes on the CPU, 8 updates
# Prints: mean episode return of the greedy policy: 51.4, after 1,024 environment steps in 6.2 s; run in runs/multi_gpu/ (with --dry)
set -euo pipefail
python=${PYTHON:-python}
if [ "${1:-}" = --dry ]; then
  shift
  processes=2
  set -- --device cpu --num-envs 8 --total-steps 1024 "$@"
else
  processes=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
  set -- --num-envs 4096 --total-steps 20000000 "$@" # the sums over all processes; each steps its share of the environments
fi
# Several machines: in place of --standalone, --nnodes 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 on each of them, and a folder for
# --out that all can access. If a process dies, all of them start again from the last checkpoint, at most --max-restarts times.
exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$processes" --max-restarts 3 \
  -m a2c_compiled.cli train --preset cartpole --out runs/multi_gpu "$@"

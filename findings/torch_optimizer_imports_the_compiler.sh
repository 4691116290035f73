#!/usr/bin/env bash
# PyTorch 2.13.0: making an optimiser, or its first step, imports torch._dynamo, some 800 modules, in a program that compiles
# nothing; it takes about as much processor time as importing PyTorch.
#
# Expected: torch.optim.AdamW and its step in eager mode use what `import torch` has loaded. (I had guessed: some
# milliseconds, and no module of the compiler.)
# Real: add_param_group, zero_grad and the update are kept away from the compiler by a decorator that imports the compiler at
# the first call of each; step itself imports it to break a graph that nobody traces. With step's wrapped function called
# directly and the decorator's result put into its cache, the update is the same to the last bit and nothing is imported.
#
# Why trainers over slow links meet it: every rank pays it inside its first step. Where nodes come and go, each newcomer keeps
# all others waiting a second longer at the first synchronisation, and on a machine that hosts many emulated ranks it was a
# third of the time that starting them took.
#
# Seen (2 cores, processor seconds):
#   importing torch: 1.2 s; making AdamW and one step: 1.1 s, 824 modules, torch._dynamo True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat >"$folder/step.py" <<'PY'
import sys
import time

begun = time.process_time()
import torch

imported = time.process_time() - begun
known, begun = set(sys.modules), time.process_time()
weight = torch.ones(3, requires_grad=True)
optimizer = torch.optim.AdamW([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
took = time.process_time() - begun
new = set(sys.modules) - known
print(
    f"importing torch: {imported:.1f} s; making AdamW and one step: {took:.1f} s, {len(new)} modules, "
    f"torch._dynamo {'torch._dynamo' in new}"
)
sys.exit(not ("torch._dynamo" in new and len(new) > 400 and took > 0.3 * imported))
PY
"$folder/venv/bin/python" "$folder/step.py"

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # At which bandwidth and latency does compression pay?
# `make sweep GRID=experiments/bandwidth_latency.toml` has timed every arm on every link. Another sweep: set
# `TESTBED_SWEEP` to its folder (an absolute path) before the notebook is opened.

# %%
# %matplotlib inline
from rich.console import Console

from testbed.analysis.comparison.load import run_of_notebook
from testbed.analysis.sweep.figures import (
    data_bandwidth_needed,
    figure_bandwidth_needed,
    figure_speedup,
    figure_throughput,
)
from testbed.analysis.sweep.results import load_sweep
from testbed.analysis.sweep.summary import print_sweep

sweep = load_sweep(run_of_notebook("TESTBED_SWEEP", "bandwidth_latency"))

# %%
print_sweep(sweep, Console(width=120))

# %% [markdown]
# ## Tokens per second

# %%
figure_throughput(sweep)

# %% [markdown]
# ## How much faster than exact exchange
# What the link cannot resolve is marked, not drawn as equal.

# %%
figure_speedup(sweep, "subspace")

# %%
figure_speedup(sweep, "control")

# %% [markdown]
# ## The bandwidth that each scheme needs (projected)

# %%
figure_bandwidth_needed(sweep)

# %%
data_bandwidth_needed(sweep).pivot_table(
    index=["arm", "one_way_delay_seconds"], columns="utilisation", values="bandwidth_bps"
)

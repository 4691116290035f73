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
# # The paper's figures 2 and 14, at small scale
# Losses are those of a small model (measured), times those of the paper's nodes on real links (composed of measured
# steps; compute modelled). Another sweep: set `TESTBED_SWEEP` to its folder before the notebook is opened.

# %%
# %matplotlib inline
import os

from testbed.analysis.sweep_figures import (
    data_loss_against_bandwidth,
    figure_loss_against_bandwidth,
    figure_loss_against_hours,
)
from testbed.analysis.sweeps import load_sweep

sweep = load_sweep(os.environ.get("TESTBED_SWEEP", "../runs/bandwidth_latency"))

# %% [markdown]
# ## Figure 2: loss against hours
# Bands: lowest and highest seed. The control, which exchanges nothing, belongs into every such figure.

# %%
figure_loss_against_hours(sweep)

# %% [markdown]
# ## Figure 14: the same for every bandwidth

# %%
figure_loss_against_bandwidth(sweep)

# %%
data_loss_against_bandwidth(sweep).groupby(["arm", "bandwidth_bps"])[["hours", "val_loss"]].last()

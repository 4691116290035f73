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
# steps; compute modelled). Made by `make sweep GRID=experiments/figure2_convergence.toml` and
# `make sweep GRID=experiments/figure14_bandwidths.toml`. Other sweeps: set `TESTBED_FIGURE2` and `TESTBED_FIGURE14` to
# their folders (absolute paths) before the notebook is opened.

# %%
# %matplotlib inline
from testbed.analysis.comparison.load import run_of_notebook
from testbed.analysis.sweep.figures import (
    data_loss_against_bandwidth,
    figure_loss_against_bandwidth,
    figure_loss_against_hours,
)
from testbed.analysis.sweep.results import load_sweep

convergence = load_sweep(run_of_notebook("TESTBED_FIGURE2", "figure2_convergence"))
bandwidths = load_sweep(run_of_notebook("TESTBED_FIGURE14", "figure14_bandwidths"))

# %% [markdown]
# ## Figure 2: loss against hours
# Bands: lowest and highest seed. The control, which exchanges nothing, belongs into every such figure.

# %%
figure_loss_against_hours(convergence)

# %% [markdown]
# ## Figure 14: the same for every bandwidth

# %%
figure_loss_against_bandwidth(bandwidths)

# %%
data_loss_against_bandwidth(bandwidths).groupby(["arm", "bandwidth_bps"])[["hours", "val_loss"]].last()

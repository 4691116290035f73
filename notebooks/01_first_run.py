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
# # A first run
# `make emulate BW=300mbit NAME=first` has compared five trainers over links of 300 Mbit/s. This notebook reads what it
# left. Another run: set `TESTBED_COMPARISON` to its folder (an absolute path) before the notebook is opened.

# %%
# %matplotlib inline
from rich.console import Console

from testbed.analysis.comparison.figures import (
    figure_bytes,
    figure_links,
    figure_loss_against_hours,
    figure_loss_against_step,
    figure_step_time,
)
from testbed.analysis.comparison.load import load_comparison, run_of_notebook
from testbed.analysis.comparison.summary import print_summary

comparison = load_comparison(run_of_notebook("TESTBED_COMPARISON", "first"))

# %% [markdown]
# ## What it says

# %%
print_summary(comparison, Console(width=100))

# %% [markdown]
# ## Were the links what was asked?
# Every link is measured alone and all at once, before and after the timed steps.

# %%
figure_links(comparison)

# %% [markdown]
# ## Where does the time of a step go?

# %%
figure_step_time(comparison)

# %% [markdown]
# ## What is on the wire?

# %%
figure_bytes(comparison)

# %% [markdown]
# ## Loss against time, and against steps
# A link decides the first and never the second.

# %%
figure_loss_against_hours(comparison)

# %%
figure_loss_against_step(comparison)

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
# # What does compression cost in quality?
# `.venv/bin/testbed learn experiments/figure5_baselines.toml` has learned some codecs on a task that needs an exchange.
# Another run: set `TESTBED_QUALITY` to its folder (an absolute path) before the notebook is opened.

# %%
# %matplotlib inline

from IPython.display import Markdown

from testbed.analysis.comparison.load import run_of_notebook
from testbed.analysis.quality.figures import data_recovered, figure_recovered
from testbed.analysis.quality.pages import markdown
from testbed.records import QualityRecord, read_record

record = read_record(QualityRecord, run_of_notebook("TESTBED_QUALITY", "figure5_baselines") / "quality.json")

# %% [markdown]
# ## Recovered of what exchange is worth, against bytes
# 1 is as good as exchanging everything, 0 as good as exchanging nothing.

# %%
figure_recovered(record)

# %%
data_recovered(record)

# %% [markdown]
# ## Every figure with its interval

# %%
Markdown(markdown(record))

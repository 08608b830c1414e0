"""Studies: questions about a model that take many removals to answer, each with its tables, figures and data.

`sweep` and `compare` measure many pruned models, `tradeoff` and `inspection` look at what decides which units go. A
study is made of the stages of the pipeline; its output folder appears whole, and a killed one goes on.
"""

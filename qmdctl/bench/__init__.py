"""`qmdctl bench`: the requests of a QMD client, measured.

target.py       where to, with which key; that it answers at all
texts.py        the notes that are indexed and searched, made up from a seed
workload.py     the requests of a batch and of a search, and their sizes
client.py       one request, measured
plan.py         how the time is divided; what a slow machine leaves out
load.py         the phases, and what came back
figures.py      percentiles, rates, shares
expectation.py  what the preset says; history.py: what the last run said
advice.py       what a slow figure means and which setting moves it
report.py       the table; progress.py: the bar
"""

"""Benchmarks behind `triton-voice bench`: each measures one thing, prints a table and writes one JSON file.

The file is `{"bench", "machine", "versions", "commit", "weights", "settings", "rows"}`; see `report.Report`. Plots are
drawn from the file by `plot`, never from memory, so that a published plot can be drawn again.

`suite` runs them all into the one file of a machine (`results`), of which `markdown` makes a page, `compare` a
comparison and `capacity` the number of streams that the machine can serve.
"""

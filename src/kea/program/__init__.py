"""Programs: templates, calls, variables, the graph, and their wire form. Pure: no clock, no loop, no torch."""

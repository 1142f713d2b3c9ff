"""What a run shows of itself while it trains: on a terminal, in a notebook, as plain lines.

`progress` is what the engine knows; it chooses the form, and nothing in here ever raises or waits.
"""

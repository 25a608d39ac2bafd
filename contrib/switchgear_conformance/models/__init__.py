"""Models: programs that Hypothesis makes up, played on a transport and compared with what must come of them."""

"""The conformance kit: proof, for a transport's author, that a driver keeps its contract.

Planned. It will hold the cases that every transport must pass, chosen by what its `Capabilities` declare, a pytest
plugin that runs them against a broker which the author starts, and a report that names each guarantee and grades it
native, emulated or refused. Until then Switchgear's own tests of the contract are in its source tree.
"""

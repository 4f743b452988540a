"""The algorithm, in the order the data flows: `inner` (adapt), `outer` (meta-gradient), `step` (meta-update)."""

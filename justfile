# What a contributor types. `just check` is what CI runs.

# Everything that CI checks: formatting, lints, licences, every test.
check:
    ./tests/run

# Only what needs no root and no namespaces.
quick:
    cargo fmt --all --check
    cargo test -p weft-model -p weft-plan -p weft-nat64-core -p weft-proxy-core

# Bring up a fabric on this machine and show it working; Ctrl-C ends it.
demo *ARGS:
    ./labs/demo {{ARGS}}

# Measure against the peers that apt has.
bench *AREAS:
    ./tests/bench {{AREAS}}

# Known vulnerabilities: needs the network, so it is not part of `check`.
advisories:
    cargo deny check advisories

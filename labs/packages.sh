# shellcheck shell=bash
# Sourced by labs/demo and tests/run: finds out which Debian or Ubuntu packages are missing, and installs those alone.

# Servers and tools that a plain user's PATH does not show.
export PATH="$PATH:/usr/sbin:/sbin"
missing=()

# want COMMAND PACKAGE: the command, or else the package that has it.
want() {
    command -v "$1" >/dev/null || missing+=("$2")
}

# want_file FILE PACKAGE: the same for a file.
want_file() {
    [ -e "$1" ] || missing+=("$2")
}

# need_cargo SCRIPT: Rust is not installed for anybody; it says how.
need_cargo() {
    command -v cargo >/dev/null && return
    echo "$1 needs Rust 1.95 or newer: install it as https://rustup.rs tells, open a new shell, and run this again." >&2
    exit 1
}

# What building Weft and running a lab take.
want_build() {
    want clang clang
    want cc build-essential
    want cmake cmake
    want_file /usr/include/bpf/bpf_helpers.h libbpf-dev
}

want_lab() {
    want ip iproute2
    want nft nftables
    want ping iputils-ping
    want curl curl
    want unbound unbound
}

# Installs what is missing. Services among it (unbound) are not started: a lab runs its own, in its own namespaces.
install_missing() {
    [ "${#missing[@]}" -gt 0 ] || return 0
    echo "It first installs: ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "There is no apt-get here: install these by your package manager, under its names, and run this again." >&2
        exit 1
    fi
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=$policy
    fi
    local failed=
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } || failed=yes
    [ -z "$made" ] || rm -f "$made"
    if [ -n "$failed" ]; then
        echo "apt-get could not install these: mend what it says above, and run this again." >&2
        exit 1
    fi
}

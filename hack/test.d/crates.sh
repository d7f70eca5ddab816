# shellcheck shell=bash
# Stages over the crates: their tests on this host, and what is shipped of them.

# run_tests CARGO FLAGS: runs what the flags select and counts it, with nextest where it is installed.
run_tests() {
    local code=0 log=$LOGS/$STAGE.tests
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --no-fail-fast --no-tests pass --color never "$@" 2>&1 | tee "$log" || code=$?
        count "$(sed -n 's/^ *Summary .* \([0-9]*\) passed.*/\1/p' "$log" | tail -1 | grep . || echo 0)" \
            "$(sed -nE 's/^ *Summary //; T; s/.*: //; s/[^,]*passed[^,]*//; p' "$log" | grep -oE '[0-9]+ (failed|timed out|exec failed)' | awk '{ total += $1 } END { print total + 0 }')"
    else
        cargo test --locked --no-fail-fast --color never "$@" 2>&1 | tee "$log" || code=$?
        count_libtest "$log"
    fi
    return "$code"
}

# count_libtest LOG: adds up what libtest printed.
count_libtest() {
    local counts
    counts=$(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$1" |
        awk '{ passed += $1; failed += $2 } END { print passed + 0, failed + 0 }')
    # shellcheck disable=SC2086 # two numbers
    count $counts
}

# `host` is the crate that touches the kernel: all of its tests do.
stage_unit() { run_tests --workspace --exclude host --lib --bins; }

stage_netns() {
    local code=0
    if ((EUID != 0)); then not_run "tests on network namespaces" "root only" && return; fi
    if [[ -n $(debian_codename) ]]; then
        install_lab_packages
        build_cnitool || true # the tests that need it will tell
    fi
    run_tests -p host --lib || code=$?
    run_tests --workspace --test '*' || code=$?
    return "$code"
}

# The programs, built as they are shipped; once per run of hack/test.
shipped_programs() {
    [[ -e $LOGS/shipped ]] && return
    "$REPO/hack/build"
    touch "$LOGS/shipped"
}

is_static() { ! ldd "$1" 2>/dev/null | grep '=>' >/dev/null; }

smaller_than() {
    local bytes
    bytes=$(stat -c %s "$1")
    printf '%s: %s bytes of %s\n' "${1##*/}" "$bytes" "$2"
    ((bytes < $2))
}

stage_size() {
    local program
    shipped_programs
    for program in sriov whereabouts multus multus-shim multus-daemon sriov-device-plugin; do
        check "$program is static" is_static "$REPO/target/programs/$program"
    done
    # Copied onto every node and started for every pod.
    check "sriov is small" smaller_than "$REPO/target/programs/sriov" $((2 * 1024 * 1024))
    check "multus is small for what it does" smaller_than "$REPO/target/programs/multus" 6000000
    check "multus-shim is smaller" smaller_than "$REPO/target/programs/multus-shim" $((600 * 1024))
}

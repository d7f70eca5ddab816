# shellcheck shell=bash
# Stages in a lab guest. Each boots a fresh one, in an instance of its own.

export PODRAIL_LAB=test
INSTANCE=$CACHE/lab/$PODRAIL_LAB
PROGRAMS=$REPO/target/programs

in_guest() { "$REPO/hack/lab" exec -- "$@" </dev/null; }

lab_possible() {
    if ((EUID != 0)); then not_run "everything in the lab" "root only" && return 1; fi
    if [[ -z $(debian_codename) ]]; then not_run "everything in the lab" "the lab installs its tools from Debian" && return 1; fi
}

boot_lab() {
    lab_stages_end
    "$REPO/hack/lab" up --leash "$$" "$@"
}

lab_stages_end() {
    [[ -d $INSTANCE ]] || return 0
    end_leash "$INSTANCE/test-leash"
    if [[ -d $INSTANCE/kubernetes ]]; then "$REPO/hack/kubernetes" down >/dev/null 2>&1 || true; fi
    "$REPO/hack/lab" down || true
}

# All executables of tests, as "CRATE-TARGET PATH".
test_executables() {
    cargo test --locked --workspace --no-run --message-format=json-render-diagnostics |
        jq -r 'select(.profile.test == true and .executable != null)
            | "\(.manifest_path | split("/")[-2])-\(.target.name) \(.executable)"'
}

# (Not by grep -q, which ends at the first test; the executable fails when it cannot write the rest.)
has_ignored_tests() { [[ $("$1" --ignored --list --format terse 2>/dev/null) == *': test'* ]]; }

# guest_tests NAME COMMAND...: a test executable in the guest, counted.
guest_tests() {
    local name=$1 code=0 log=$LOGS/lab.$1
    shift
    printf -- '--- %s\n' "$name"
    timeout 3600 "$REPO/hack/lab" exec -- "$@" </dev/null 2>&1 | tee "$log" || code=$?
    count_libtest "$log"
    if ((code != 0)) && ! grep -q '^test result: FAILED' "$log"; then
        printf 'FAILED: %s broke off (exit code %s)\n' "$name" "$code"
        count 0 1
    fi
}

stage_lab() {
    local name executable ignored=()
    lab_possible || return 0
    "$REPO/hack/test.d/lab-itself" "$$" >"$LOGS/lab-itself" || true
    cat "$LOGS/lab-itself"
    count "$(grep -c '^ok: ' "$LOGS/lab-itself")" "$(grep -c '^FAILED: ' "$LOGS/lab-itself")"

    build_cnitool || true # the tests that need it will tell
    test_executables >"$LOGS/tests"
    boot_lab --pfs 2 --vfs 7
    while read -r name executable <&3; do
        # Its turn is in the stage kubernetes.
        [[ $name != multus-daemon-signer ]] || continue
        if has_ignored_tests "$executable"; then
            guest_tests "$name" "$executable" --ignored
            ignored+=("$name")
        fi
    done 3<"$LOGS/tests"
    check "there are tests for VFs" test "${#ignored[@]}" -gt 0
    # On the host these leave out the kinds of interface that its kernel lacks; the guest's kernel has them all.
    for name in cni-reference multus-delegates multus-default_routes multus-kubernetes; do
        executable=$(sed -n "s/^$name //p" "$LOGS/tests")
        guest_tests "$name" env CNI_REFERENCE_STRICT=1 "$executable"
    done
    lab_stages_end
}

# scenarios NAME GRADE FLAGS: the suite on a node of that grade; its last line counts.
scenarios() {
    local name=$1 grade=$2 code=0 log=$LOGS/$1.scenarios line
    shift 2
    timeout 3600 "$REPO/hack/lab" exec -- "$PROGRAMS/podrail-e2e" scenarios --node "$grade" --programs "$PROGRAMS" "$@" </dev/null 2>&1 |
        tee "$log" || code=$?
    line=$(tail -n 1 "$log" | tr -d '\r')
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        count "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
    else
        printf 'FAILED: the suite broke off (exit code %s)\n' "$code"
        count 0 1
    fi
    # What only another run can show is run there; it is missing if nobody ran it.
    sed -n 's/^not run: //p' "$log" | tr -d '\r' | sort >"$LOGS/$name.left-out"
}

# scenario_gaps: scenarios that no run has shown.
scenario_gaps() {
    local name runs=("$LOGS"/{sim,thick,kubernetes}.left-out)
    for name in "${runs[@]}"; do [[ -e $name ]] || return 0; done
    sed 's/ ([^(]*)$//' "${runs[@]}" | sort | uniq -c | while read -r count name; do
        if ((count == ${#runs[@]})); then printf '%s\n' "$name"; fi
    done >"$LOGS/gaps"
    while read -r name; do not_run "$name" "in no run of the suite"; done <"$LOGS/gaps"
}

stage_sim() {
    lab_possible || return 0
    shipped_programs
    boot_lab --pfs 2 --vfs 7
    scenarios sim sim
    lab_stages_end
}

stage_thick() {
    lab_possible || return 0
    shipped_programs
    boot_lab --pfs 2 --vfs 7
    scenarios thick sim --thick
    lab_stages_end
}

# The life cycle of multus-daemon on a real kubelet. What differs in nothing but the runtime is left to the stage thick: a pod
# takes ten seconds here.
KUBERNETES_THICK=(
    "multus-daemon is killed while pods come and go"
    "multus-daemon is upgraded under load"
    "DEL while multus-daemon is away"
    "multus-daemon follows the annotation"
    "the API server is away while multus-daemon"
    "multus-daemon is uninstalled while a pod runs"
)

stage_kubernetes() {
    local filter filters=()
    lab_possible || return 0
    shipped_programs
    boot_lab --pfs 2 --vfs 7 --memory 4G
    on_leash "$$" "$INSTANCE/test-leash" env PODRAIL_LAB="$PODRAIL_LAB" "$REPO/hack/kubernetes" down
    "$REPO/hack/kubernetes" up
    PODRAIL_KUBECONFIG=$INSTANCE/kubeconfig run_tests -p e2e --test apiserver || true
    PODRAIL_KUBECONFIG=$INSTANCE/kubeconfig run_tests -p ipam --test cluster || true
    PODRAIL_KUBECONFIG=$INSTANCE/kubeconfig run_tests -p multus-daemon --test signer -- --ignored || true
    scenarios kubernetes kubernetes --kubeconfig "$INSTANCE/share/kubeconfig"
    for filter in "${KUBERNETES_THICK[@]}"; do filters+=(--filter "$filter"); done
    scenarios kubernetes-thick kubernetes --kubeconfig "$INSTANCE/share/kubeconfig" --thick "${filters[@]}"
    scenario_gaps
    lab_stages_end
}

stage_nodes() {
    local code=0
    lab_possible || return 0
    shipped_programs
    boot_lab --nodes 2 --pfs 1 --vfs 4 --memory 1536M --hugepages 64 --disk
    on_leash "$$" "$INSTANCE/test-leash" env PODRAIL_LAB="$PODRAIL_LAB" "$REPO/hack/kubernetes" down
    "$REPO/hack/kubernetes" up
    "$REPO/hack/test.d/two-nodes" "$PROGRAMS" >"$LOGS/two-nodes" || code=$?
    cat "$LOGS/two-nodes"
    count "$(grep -c '^ok: ' "$LOGS/two-nodes")" "$(grep -c '^FAILED: ' "$LOGS/two-nodes")"
    grep -q '^FAILED: ' "$LOGS/two-nodes" || check "the pods' story came to its end" test "$code" = 0
    lab_stages_end
}

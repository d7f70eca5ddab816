# shellcheck shell=bash
# What every script here starts from: where things are, and how it speaks to the terminal.

# shellcheck disable=SC2034  # read by the scripts that source this file
REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
export HOME=${HOME:-/root}
CACHE=$HOME/.cache/podrail

# A CI job may start with a bare PATH; rustup's and the system's own directories are where tools are.
export PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$*"
    exit 1
}

require_root() {
    ((EUID == 0)) || die "must run as root (it starts guests over the host's root file system, and moves kernel interfaces)"
}

# alive PID WORD: is PID a running process whose command line holds WORD?
# A PID file outlives its process after kill -9, and the kernel hands the number out again.
alive() {
    [[ -n ${1:-} && -r /proc/$1/cmdline ]] || return 1
    { tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF -- "$2"; } 2>/dev/null
}

# end_process PID WORD: SIGTERM, up to three seconds of patience, SIGKILL.
end_process() {
    local tries
    alive "$1" "$2" || return 0
    kill -TERM "$1" 2>/dev/null || true
    for ((tries = 0; tries < 30; tries++)); do
        alive "$1" "$2" || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

# on_leash OWNER PIDFILE COMMAND...: runs COMMAND once the process OWNER is gone, however it went (kill -9 included).
# Who ends things himself ends the leash too, or it would end the next ones.
on_leash() {
    local owner=$1 pidfile=$2
    shift 2
    end_leash "$pidfile"
    # shellcheck disable=SC2016  # expands in the child, which names its own process
    setsid bash -c 'echo $$ >"$1"; owner=$2; shift 2
        while kill -0 "$owner" 2>/dev/null; do sleep 1; done; exec "$@"' \
        podrail-leash "$pidfile" "$owner" "$@" </dev/null >/dev/null 2>&1 &
}

end_leash() {
    local pid
    read -r pid 2>/dev/null <"$1" || return 0
    rm -f "$1"
    [[ $pid == "$$" ]] || end_process "$pid" podrail-leash
}

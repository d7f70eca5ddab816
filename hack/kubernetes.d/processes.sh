# shellcheck shell=bash
# Servers of an instance: started in sessions of their own, found again and ended by pid, never by name.
#
# A pid file holds the pid and the start time of the process (proc(5) stat field 22): after a crash or a
# reboot the number may belong to a stranger, the pair cannot.

# start_time PID: clock ticks since boot; nothing when there is no such process.
process_start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The command name in parentheses may hold blanks; field 3 follows the last parenthesis.
    cut -d' ' -f20 <<<"${stat##*) }"
}

# process_pid NAME: the pid of a server that is alive; fails otherwise.
process_pid() {
    local pid started
    read -r pid started 2>/dev/null <"$STATE/pid/$1" || return 1
    [[ -n $started && $(process_start_time "$pid") == "$started" ]] || return 1
    echo "$pid"
}

# process_start NAME COMMAND...: the child writes its own pid file, so that no moment exists in which a killed
# script leaves a server behind that nobody can find.
process_start() {
    local name=$1
    shift
    mkdir -p "$STATE/pid" "$LOGS"
    # shellcheck disable=SC2016 # expands in the child
    setsid bash -c '
        stat=$(cat /proc/$$/stat)
        echo "$$ $(cut -d" " -f20 <<<"${stat##*) }")" >"$1"
        shift
        exec "$@"' "$name" "$STATE/pid/$name" "$@" \
        >"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
}

# process_stop NAME: TERM, then KILL after 5 s.
process_stop() {
    local name=$1 pid tries
    if pid=$(process_pid "$name"); then
        kill -TERM "$pid" 2>/dev/null || true
        for ((tries = 0; tries < 50; tries++)); do
            process_pid "$name" >/dev/null || break
            sleep 0.1
        done
        if pid=$(process_pid "$name"); then
            kill -KILL "$pid" 2>/dev/null || true
        fi
    fi
    rm -f "$STATE/pid/$name"
}

# process_wait NAME SECONDS COMMAND...: until COMMAND succeeds; an early death of NAME ends the wait.
process_wait() {
    local name=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [[ -s $STATE/pid/$name ]] && ! process_pid "$name" >/dev/null; then
            tail -n 5 "$LOGS/$name.log" >&2
            die "$name ended before it was ready; see $LOGS/$name.log"
        fi
        if ((SECONDS >= deadline)); then
            tail -n 5 "$LOGS/$name.log" >&2
            die "$name was not ready in time; see $LOGS/$name.log"
        fi
        sleep 0.1
    done
}

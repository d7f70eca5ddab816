# shellcheck shell=bash
# Servers of an instance: started in sessions of their own, found again and ended by pid, never by name.

# process_pid NAME: the pid of a server that is alive; fails otherwise. Every server's command line names the
# instance's state, which tells it from a stranger that got its number after a crash or a reboot.
process_pid() {
    local pid
    read -r pid 2>/dev/null <"$STATE/pid/$1" || return 1
    alive "$pid" "$STATE/" || return 1
    echo "$pid"
}

# process_start NAME COMMAND...: the child writes its own pid file, so that no moment exists in which a killed
# script leaves a server behind that nobody can find. It must not inherit the lock of `instance_locked`.
process_start() {
    local name=$1
    shift
    mkdir -p "$STATE/pid" "$LOGS"
    # shellcheck disable=SC2016 # expands in the child
    setsid bash -c 'echo $$ >"$1"; shift; exec "$@"' "$name" "$STATE/pid/$name" "$@" \
        >"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
}

process_stop() {
    local pid
    if pid=$(process_pid "$1"); then
        end_process "$pid" "$STATE/"
    fi
    rm -f "$STATE/pid/$1"
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

#!/bin/sh
# Does with ebb.service what systemd would, as far as the documents and the package's scripts ask for it: the unit's own
# command line, variables, directories and capabilities. Other units are none of its business.
set -eu
unit=/lib/systemd/system/ebb.service
[ -e "$unit" ] || unit=/usr/lib/systemd/system/ebb.service
pid_file=/run/ebb-unit.pid

setting() { sed -n "s/^$1=//p" "$unit" | tail -n1; }
# An ended process that nobody has waited for does not live.
alive() { [ -e "$pid_file" ] && grep -q '^State:.[^ZX]' "/proc/$(cat "$pid_file")/status" 2>/dev/null; }

start() {
    alive && return
    EBB_ARGS=
    eval "$(sed -n 's/^Environment=//p' "$unit" | tr -d '"' | sed 's/=\(.*\)/="\1"/')"
    [ -e /etc/default/ebb ] && . /etc/default/ebb
    mkdir -p /run/ebb /var/lib/ebb
    group=$(sed -n 's/^Group=//p' /etc/systemd/system/ebb.service.d/*.conf 2>/dev/null | tail -n1)
    chown "root:${group:-root}" /run/ebb /var/lib/ebb
    chmod "$(setting RuntimeDirectoryMode)" /run/ebb
    chmod "$(setting StateDirectoryMode)" /var/lib/ebb
    bounds=$(setting CapabilityBoundingSet | tr 'A-Z ' 'a-z,' | sed 's/cap_/+/g')
    # shellcheck disable=SC2086 # systemd splits an unquoted variable too
    setpriv ${group:+--regid "$group" --clear-groups} --no-new-privs --inh-caps=-all --bounding-set="-all,$bounds" \
        $(setting ExecStart | sed "s|\$EBB_ARGS|$EBB_ARGS|") >>/var/log/ebb.log 2>&1 </dev/null &
    echo $! >"$pid_file"
    for _ in $(seq 300); do
        /usr/bin/ebb status >/dev/null 2>&1 && return
        alive || break
        sleep 0.1
    done
    echo "Job for ebb.service failed; the log:" >&2
    cat /var/log/ebb.log >&2
    exit 1
}

stop() {
    alive || return 0
    kill "$(cat "$pid_file")"
    while alive; do sleep 0.05; done
    rm -f "$pid_file"
}

verb= now= ours=
for word; do
    case $word in
    --now) now=yes ;;
    -*) ;;
    ebb | ebb.service) ours=yes ;;
    *) verb=${verb:-$word} ;;
    esac
done
[ -n "$ours" ] || exit 0
case $verb in
enable) [ -z "$now" ] || start ;;
start) start ;;
stop) stop ;;
restart) stop && start ;;
try-restart) if alive; then stop && start; fi ;;
reload) kill -HUP "$(cat "$pid_file")" ;;
is-active) alive ;;
disable) [ -z "$now" ] || stop ;;
esac

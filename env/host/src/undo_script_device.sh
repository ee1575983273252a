
sys=${SYS_ROOT:-/sys}

# line_of FILE: its first line without blanks around it, in $line; fails where there is none.
line_of() {
    line=
    { read -r line <"$1"; } 2>/dev/null
    [ -n "$line" ]
}

# id_of DIRECTORY: what tells the device from all others, in $id, whatever the kernel calls it.
id_of() {
    for source in wwid:wwid wwid:device/wwid dm:dm/uuid md:md/uuid loop:loop/backing_file serial:serial; do
        if line_of "$1/${source#*:}"; then
            id=${source%%:*}:${line% (deleted)}
            return
        fi
    done
    line_of "$1/device/serial" || return
    id=serial:$line
    if line_of "$1/nsid"; then id=$id/$line; fi
}

# begin_device ID BOOT WHAT: whether there is something to undo; its settings are in $queue then.
begin_device() {
    what=$3 queue= count=0
    if line_of /proc/sys/kernel/random/boot_id && [ "$line" != "$2" ]; then
        ended 'the host has booted since, and the setting ended with that'
        return 1
    fi
    for directory in "$sys"/block/*; do
        if id_of "$directory" && [ "$id" = "$1" ]; then
            queue=$directory/queue
            count=$((count + 1))
        fi
    done
    case $count in
    0)
        ended 'the device has gone, and the setting with it'
        return 1
        ;;
    1) return 0 ;;
    esac
    fail "$count devices have the id $1, so it cannot be told which was changed"
    return 1
}

# setting FILE: a setting of the device; of the scheduler the one in force.
setting() {
    line_of "$queue/$1"
    case $line in
    *\[*\]*)
        line=${line#*\[}
        line=${line%%\]*}
        ;;
    esac
    printf '%s' "$line"
}

# set_to FILE VALUE: whether it reads so afterwards.
set_to() {
    { printf '%s' "$2" >"$queue/$1"; } 2>/dev/null
    [ "$(setting "$1")" = "$2" ]
}

# device FILE ORIGINAL VALUE PREVIOUS [FILE BEFORE AFTER]...: what follows is what the kernel has
# changed along with it. What somebody else has set of that since stays, as far as the kernel takes it.
device() {
    file=$1 original=$2
    is_ours "$(setting "$file")" "$2" "$3" "$4" || return
    shift 4
    targets=
    while [ $# -ge 3 ]; do
        now=$(setting "$1")
        if [ -z "$3" ] || [ "$now" = "$3" ]; then
            targets="$targets $1=$2"
        else
            targets="$targets $1=$now"
        fi
        shift 3
    done
    if ! set_to "$file" "$original"; then
        fail "the kernel did not take $original, and it is $(setting "$file")"
        return
    fi
    for target in $targets; do
        if [ "$(setting "${target%%=*}")" != "${target#*=}" ] && ! set_to "${target%%=*}" "${target#*=}"; then
            fail "is $original again, but the kernel did not take $target"
            return
        fi
    done
    put_back "$original"
}

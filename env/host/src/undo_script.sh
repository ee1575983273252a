LC_ALL=C
export LC_ALL
failed=0
undone=0
moot=0

v() {
    if [ -n "$uri" ]; then
        virsh --quiet --connect "$uri" "$@"
    else
        virsh --quiet "$@"
    fi
}

say() {
    printf '%s: %s\n' "$what" "$1"
}

fail() {
    printf '%s: NOT UNDONE: %s\n' "$what" "$1" >&2
    failed=$((failed + 1))
}

ended() {
    say "$1"
    moot=$((moot + 1))
}

put_back() {
    say "put back to $1"
    undone=$((undone + 1))
}

# begin UUID BOOT STARTED WHAT: whether there is something to undo.
begin() {
    what=$4
    if ! active=$(v list --uuid); then
        fail 'virsh cannot list the running guests'
        return 1
    fi
    case $active in
    *"$1"*) same_qemu "$1" "$2" "$3" ;;
    *)
        ended 'the guest does not run any more, and the setting ended with its QEMU'
        return 1
        ;;
    esac
}

# same_qemu UUID BOOT STARTED: whether the guest still runs in the QEMU that was changed. virsh cannot
# tell; a process in /proc with this UUID on its command line and this start can.
same_qemu() {
    uuid=$1 boot=$2 started=$3 is_seen=no
    for process in /proc/[0-9]*; do
        line= stat= booted=
        { IFS= read -r line <"$process/cmdline"; } 2>/dev/null
        case $line in
        *qemu*-uuid"$uuid"*) ;;
        *) continue ;;
        esac
        { IFS= read -r stat <"$process/stat"; } 2>/dev/null || continue
        { IFS= read -r booted </proc/sys/kernel/random/boot_id; } 2>/dev/null || continue
        is_seen=yes
        set -- ${stat##*) }
        if [ "$booted" = "$boot" ] && [ "${20}" = "$started" ]; then
            return 0
        fi
    done
    if [ "$is_seen" = yes ]; then
        ended 'the guest has been restarted since, and the setting ended with its QEMU'
        return 1
    fi
    say 'its QEMU is not seen in /proc here, so that it cannot be told whether it was restarted since'
}

# is_ours NOW ORIGINAL VALUE PREVIOUS: whether what is in force is what blkpilot set.
is_ours() {
    case $1 in
    '') fail 'what is in force cannot be read' ;;
    "$2")
        say "is $2 already"
        undone=$((undone + 1))
        ;;
    "$3" | "$4") return 0 ;;
    *) fail "somebody else set it to $1, which is left alone (blkpilot set $3, before that it was $2)" ;;
    esac
    return 1
}

# is_back NOW ORIGINAL
is_back() {
    if [ "$1" = "$2" ]; then
        put_back "$2"
    else
        fail "was set to $2, but reads $1"
    fi
}

iothread_cpus() {
    v iothreadinfo "$1" --live | while read -r id cpus; do
        if [ "$id" = "$2" ]; then printf '%s' "$cpus"; fi
    done
}

# pin UUID IOTHREAD ORIGINAL VALUE PREVIOUS
pin() {
    is_ours "$(iothread_cpus "$1" "$2")" "$3" "$4" "$5" || return
    if v iothreadpin "$1" "$2" "$3" --live >/dev/null; then
        is_back "$(iothread_cpus "$1" "$2")" "$3"
    else
        fail 'virsh iothreadpin failed'
    fi
}

poll_max_ns() {
    v domstats --iothread "$1" | while read -r line; do
        case $line in
        iothread."$2".poll-max-ns=*) printf '%s' "${line#*=}" ;;
        esac
    done
}

# polling UUID IOTHREAD ORIGINAL VALUE PREVIOUS
polling() {
    is_ours "$(poll_max_ns "$1" "$2")" "$3" "$4" "$5" || return
    if v iothreadset "$1" "$2" --poll-max-ns "$3" --live >/dev/null; then
        is_back "$(poll_max_ns "$1" "$2")" "$3"
    else
        fail 'virsh iothreadset failed'
    fi
}

# monitor UUID COMMAND: whether QEMU did it; virsh succeeds whatever QEMU answers.
monitor() {
    reply=$(v qemu-monitor-command "$1" "$2")
    case $reply in
    *'"return"'*) return 0 ;;
    *)
        fail "QEMU refused: $reply"
        return 1
        ;;
    esac
}

cache_of() {
    v qemu-monitor-command "$1" --hmp "info block -n $2" | while read -r line; do
        case $line in
        'Cache mode:'*direct*) printf direct ;;
        'Cache mode:'*) printf buffered ;;
        esac
    done
}

# write_back FILE: while its disk goes on being served, which stands still for what QEMU has to write when
# it goes over to direct. Twice, since the second time there is only what became dirty in the first.
write_back() {
    if ! { sync -d "$1" && sync -d "$1"; } 2>/dev/null; then
        say 'its dirty pages cannot be written back beforehand, so the disk stands still while QEMU does it'
    fi
}

# no_job UUID: whether QEMU's block nodes may be reopened.
no_job() {
    case $(v qemu-monitor-command "$1" '{"execute":"query-block-jobs"}') in
    *'"return":[]'*) ;;
    *)
        fail 'a block job runs on the guest: run this again after it'
        return 1
        ;;
    esac
    case $(v domjobinfo "$1") in
    *None*) ;;
    *)
        fail 'a libvirt job runs on the guest: run this again after it'
        return 1
        ;;
    esac
}

# cache UUID NODE ORIGINAL VALUE PREVIOUS COMMAND FILE
cache() {
    is_ours "$(cache_of "$1" "$2")" "$3" "$4" "$5" || return
    no_job "$1" || return
    if [ "$3" = direct ]; then write_back "$7"; fi
    monitor "$1" "$6" && is_back "$(cache_of "$1" "$2")" "$3"
}

# without_spaces TEXT
without_spaces() (
    set -f
    IFS=' '
    # shellcheck disable=SC2086 # split, to be put together without them
    set -- $1
    IFS=
    printf '%s' "$*"
)

# stats_of ANSWER QDEV: what QEMU's answer to query-blockstats says of this device: an object of the list,
# found by counting braces, since its keys stand in any order.
stats_of() {
    # A brace within ${} would end it.
    rest=${1#*'"return":['} depth=0 object= brace='[{}]*'
    while :; do
        case $rest in
        *$brace) ;;
        *) return ;;
        esac
        head=${rest%%$brace}
        rest=${rest#"$head"}
        case $rest in
        '{'*)
            depth=$((depth + 1))
            if [ "$depth" -eq 1 ]; then head= object=; fi
            object=$object$head'{' rest=${rest#?}
            ;;
        *)
            depth=$((depth - 1))
            object=$object$head'}' rest=${rest#?}
            if [ "$depth" -lt 0 ]; then return; fi
            if [ "$depth" -eq 0 ]; then
                case $object in
                *'"qdev":"'"$2"'"'*)
                    printf '%s' "$object"
                    return
                    ;;
                esac
            fi
            ;;
        esac
    done
}

# buckets_of STATS: the bounds of its latency histograms, if all have the same.
buckets_of() {
    case $1 in
    *'"boundaries":['*) ;;
    *) return ;;
    esac
    bounds=${1#*'"boundaries":['}
    bounds=${bounds%%']'*}
    rest=$1
    while :; do
        case $rest in
        *'"boundaries":['"$bounds"']'*) rest=${rest#*'"boundaries":['"$bounds"']'} ;;
        *) break ;;
        esac
    done
    # What is left has others.
    case $rest in
    *'"boundaries":['*) printf 'different ones' ;;
    *) printf '%s' "$bounds" ;;
    esac
}

# histogram UUID QDEV BUCKETS COMMAND. A histogram with other buckets is somebody else's.
histogram() {
    answer=$(v qemu-monitor-command "$1" '{"execute":"query-blockstats"}')
    stats=$(stats_of "$(without_spaces "$answer")" "$2")
    buckets=$(buckets_of "$stats")
    case $stats in
    '') fail 'QEMU does not say whether the disk has a latency histogram' ;;
    *)
        case $buckets in
        '')
            say 'is absent already'
            undone=$((undone + 1))
            ;;
        "$3") monitor "$1" "$4" && put_back absent ;;
        *) fail 'somebody else counts latencies in other buckets, which are left alone' ;;
        esac
        ;;
    esac
}

# qcow2_cache UUID ORIGINAL COMMAND: QEMU does not tell what is in force.
qcow2_cache() {
    no_job "$1" && monitor "$1" "$3" && put_back "$2"
}

# throttle_of UUID TARGET: the limits of a disk as blkpilot writes them. What is 0, a burst of one second
# and a group of the disk's own say nothing.
throttle_of() {
    v blkdeviotune "$1" "$2" --live | {
        text= seen= group=
        while read -r name value; do
            name=${name%:} value=${value#: }
            case $name in
            '') continue ;;
            esac
            seen=yes
            case $name=$value in
            *=0 | *_max_length=1 | group_name= | group_name=: | group_name=/machine/*) ;;
            group_name=*) group=" $name=$value" ;;
            *) text="$text $name=$value" ;;
            esac
        done
        text=${text# }
        if [ -n "$seen" ]; then printf '%s' "${text:-none}${text:+$group}"; fi
    }
}

# throttle UUID TARGET ORIGINAL VALUE PREVIOUS [OPTION VALUE]...
throttle() {
    uuid=$1 target=$2 original=$3
    is_ours "$(throttle_of "$uuid" "$target")" "$3" "$4" "$5" || return
    shift 5
    if v blkdeviotune "$uuid" "$target" "$@" --live >/dev/null; then
        is_back "$(throttle_of "$uuid" "$target")" "$original"
    else
        fail 'virsh blkdeviotune failed'
    fi
}

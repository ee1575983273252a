#!/bin/busybox sh
# The first process of the test guest: starts the disk work its kernel command line asks for.
# shellcheck shell=dash
export PATH=/bin
/bin/busybox --install -s /bin

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "blkpilot-guest: cannot load $module"
done </lib/modules/order

say() { echo "blkpilot-guest: $*" >/dev/console; }

# `rw=randread,bs=4k` -> `--rw=randread --bs=4k`; fio writes nothing unless it fails.
run_phase() { # disk, phase
    runtime=$(echo "$2" | tr , '\n' | sed -n 's/^runtime=\([0-9]*\)s*$/\1/p')
    case "$2" in
        idle*) sleep "${runtime:-1000000}" ;;
        *)
            options=$(echo "$2" | tr , '\n' | sed -e '/^runtime=/d' -e '/^idle/d' -e 's/^/--/' | tr '\n' ' ')
            # shellcheck disable=SC2086 # options are words
            fio --name="$1" --filename="/dev/$1" --direct=1 --ioengine=io_uring --thread --group_reporting \
                --norandommap --randrepeat=0 --clocksource=clock_gettime --gtod_reduce=1 --eta=never \
                --output=/tmp/"$1".log --time_based --runtime="${runtime:-1000000}" $options ||
                { say "fio failed on $1 ($2): $(tail -n 2 /tmp/"$1".log)"; sleep 5; }
            ;;
    esac
}

serve() { # disk, phases
    while true; do
        for phase in $(echo "$2" | tr / ' '); do run_phase "$1" "$phase"; done
    done
}

started=""
# shellcheck disable=SC2013 # the command line is one line of words
for word in $(cat /proc/cmdline); do
    case "$word" in
        blkpilot.vd*=*)
            disk=${word%%=*}
            disk=${disk#blkpilot.}
            if [ ! -b "/dev/$disk" ]; then
                say "no such disk: $disk"
                continue
            fi
            serve "$disk" "${word#*=}" &
            started="$started $disk"
            ;;
    esac
done

say "ready$started"
while true; do sleep 1000; done

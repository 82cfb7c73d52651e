#!/bin/busybox sh
# The first process of the Linux guest. Options on the kernel command line:
#   hv.ip=A.B.C.D/N      address of eth0
#   hv.dhcp              get the address of eth0 by DHCP; prints "HVCORE-GUEST dhcp ip=A.B.C.D"
#   hv.ignore_power      ignore the ACPI power button
#   hv.poweroff_after=S  power off after S seconds
#   hv.panic_after=S     kernel panic after S seconds
#   hv.dirty=MB          keep writing to MB megabytes of memory
# It says "HVCORE-GUEST ready linux ..." when it is up, then there is a root shell on ttyS0.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=vt100 PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o size=90% tmp /tmp

say() { echo "HVCORE-GUEST $*" >/dev/console; }

ip='' dhcp='' ignore_power='' poweroff_after='' panic_after='' dirty=''
read -r options </proc/cmdline
for option in $options; do
    value=${option#*=}
    case $option in
        hv.ip=*) ip=$value ;;
        hv.dhcp) dhcp=1 ;;
        hv.ignore_power) ignore_power=1 ;;
        hv.poweroff_after=*) poweroff_after=$value ;;
        hv.panic_after=*) panic_after=$value ;;
        hv.dirty=*) dirty=$value ;;
    esac
done

while read -r module; do
    insmod "/modules/$module.ko" 2>/dev/null
done </etc/modules

# Four events of 24 bytes make one press: key down, key up, each with its end mark. dd reads no further.
watch_power_button() {
    while dd bs=24 count=4 of=/dev/null 2>/dev/null; do
        if [ -n "$ignore_power" ]; then
            say "ignored power button"
        else
            say "power button"
            sync
            poweroff -f
        fi
    done
}
for event in /sys/class/input/event*; do
    name=''
    read -r name 2>/dev/null <"$event/device/name"
    if [ "$name" = 'Power Button' ]; then
        # Opened here, not in the background: a press just after the ready line must not be missed.
        exec 3<"/dev/input/${event##*/}"
        watch_power_button <&3 &
        exec 3<&-
    fi
done

ip link set lo up
if [ -n "$ip$dhcp" ]; then
    # The driver finds its device in the background.
    tries=0
    while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 100 ]; do
        usleep 20000
        tries=$((tries + 1))
    done
fi
if [ -e /sys/class/net/eth0 ]; then
    [ -n "$ip" ] && ip address add "$ip" dev eth0
    ip link set eth0 up
    [ -n "$dhcp" ] && udhcpc -i eth0 -s /etc/dhcp.sh -t 5 -T 2 -A 2 -f >/dev/null 2>&1 &
fi

[ -n "$poweroff_after" ] && (sleep "$poweroff_after"; sync; poweroff -f) &
[ -n "$panic_after" ] && (
    sleep "$panic_after"
    echo 1 >/proc/sys/kernel/sysrq
    echo c >/proc/sysrq-trigger
) &
if [ -n "$dirty" ]; then
    # Each pass writes other bytes than the one before, so that no page can be skipped as unchanged.
    dd if=/dev/urandom of=/tmp/noise bs=1M count=2 2>/dev/null
    pass=0
    while :; do
        for block in $(seq 0 $((dirty - 1))); do
            dd if=/tmp/noise of=/tmp/dirty bs=4k count=256 conv=notrunc 2>/dev/null \
                skip=$((pass % 256)) seek=$((block * 256))
        done
        pass=$((pass + 1))
    done &
fi

# Without other programs: each costs some 20 ms on an emulated processor.
names() {
    list=''
    for entry in "$1"/*; do
        entry=${entry##*/}
        case $entry in lo | '*') ;; *) list="$list${list:+,}$entry" ;; esac
    done
}
names /sys/class/net
net=$list
names /sys/block
blk=$list
cpus=0
while read -r key _; do
    case $key in cpu[0-9]*) cpus=$((cpus + 1)) ;; esac
done </proc/stat
read -r _ memory _ </proc/meminfo
read -r uptime _ </proc/uptime
say "ready linux up=$uptime cpus=$cpus mem=$memory net=$net blk=$blk"

while :; do
    setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1
    # Not a busy loop when there is no ttyS0.
    usleep 200000
done

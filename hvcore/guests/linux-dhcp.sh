#!/bin/sh
# What udhcpc of the Linux guest runs: $1 is the event, the lease is in the environment.
case $1 in
    deconfig)
        ip address flush dev "$interface"
        ip link set "$interface" up
        ;;
    bound | renew)
        ip address flush dev "$interface"
        ip address add "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface"
            break
        done
        : >/etc/resolv.conf
        for server in $dns; do
            echo "nameserver $server" >>/etc/resolv.conf
        done
        [ "$1" = bound ] && echo "HVCORE-GUEST dhcp ip=$ip" >/dev/console
        ;;
esac

#!/bin/sh
# devicemapper-guest.sh: goes into the Debian on the first disk and runs what is there.
set -eu
while read -r m; do insmod "/modules/$m" 2>/dev/null || true; done </modules/xfs
mkdir -p /mnt/root
mount -t ext4 /dev/vda /mnt/root
cp pattern /mnt/root/layerfs/pattern
for d in proc sys dev; do mount --bind "/$d" "/mnt/root/$d"; done
mount -t tmpfs run /mnt/root/run
exec chroot /mnt/root /bin/bash /layerfs/devicemapper-steps.sh
